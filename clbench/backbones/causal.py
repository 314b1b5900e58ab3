"""Where causal language models come from: a folder, a hub's name, or a shape with random weights."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clbench.errors import BadValue, NotAvailable

if TYPE_CHECKING:
    import torch

    from clbench.backbones.language import LanguageModel

_WANTED = ("*.json", "*.safetensors", "*.model", "*.txt")
_CODE = "*.py"
"""What some models bring for themselves: fetched, hashed and run only where that is asked for."""
_UNWANTED = ("consolidated*", "original/*")
"""The same weights once more, in forms that transformers does not read."""


@dataclass(frozen=True)
class HubSource:
    """A causal language model in transformers' folder layout, by path or by its name on the Hugging Face hub.

    In four bits, the linear layers of its blocks are held as `packed` tells; what is trained beside them is float32 as
    ever. Code that comes with a model is not run unless it is `trusted`.
    """

    name: str
    hub: str = ""
    """Its name on the hub; empty where only a folder will do."""
    path: Path | None = None
    four_bits: bool = False
    trusted: bool = False

    def trusting(self) -> HubSource:
        """The same model, whose own code may run."""
        return replace(self, trusted=True)

    def at(self, path: Path) -> HubSource:
        """The same model from the folder `path`."""
        return replace(self, path=path.expanduser())

    def state(self) -> str:
        """Whether its files are on this machine; asks no network."""
        from huggingface_hub import try_to_load_from_cache

        return "here" if self.path or try_to_load_from_cache(self.hub, "config.json") else "not here"

    def folder(self) -> Path:
        """The folder of its files, downloaded where the internet is there. Raises NotAvailable."""
        if self.path is not None:
            if not (self.path / "config.json").is_file():
                raise NotAvailable(
                    f"no language model in '{self.path}': it has no config.json; pass --backbone {self.name}@FOLDER "
                    "with a folder that AutoModelForCausalLM.from_pretrained reads."
                )
            return self.path
        return self._fetched((*_WANTED, _CODE) if self.trusted else _WANTED, "*.safetensors")

    def _fetched(self, wanted: tuple[str, ...], needed: str) -> Path:
        """The hub's files that are `wanted`; from the cache alone, if it holds one that is `needed`."""
        from huggingface_hub import snapshot_download

        take, leave = list(wanted), list(_UNWANTED)
        for local in (True, False):
            try:
                folder = Path(
                    snapshot_download(self.hub, local_files_only=local, allow_patterns=take, ignore_patterns=leave)
                )
            except Exception as error:  # offline, unknown, or gated: each has an exception of its own
                reason = error
                continue
            if not local or any(folder.glob(needed)):  # a cache may hold the configuration alone
                return folder
        raise NotAvailable(
            f"'{self.hub}' is neither in the Hugging Face cache nor to be had from the hub "
            f"({_first_line(reason)}); download it where the internet is there "
            f"('hf download {self.hub}', after 'hf auth login' if it is gated), "
            f"or pass --backbone {self.name}@FOLDER."
        )

    def weights_sha256(self) -> str:
        """Hash over the weights' files, the tokenizer's and those of trusted code.

        Refuses four bits where they cannot be had.
        """
        if self.four_bits:
            from clbench.backbones.packed import packing

            packing(f"hf:{self.hub}")
        folder = self.folder()
        files = sorted([*folder.glob("*.safetensors"), *folder.glob("tokenizer.json")])
        files += sorted(folder.glob(_CODE)) if self.trusted else []
        files = [file for file in files if not file.match(_UNWANTED[0])]
        if not any(file.suffix == ".safetensors" for file in files):
            raise NotAvailable(f"no *.safetensors in '{folder}'; save the model with safe_serialization=True.")
        return _sha256(tuple((str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files))

    def build(self, classes: int, seed: int, *, normalisation: str, weights: str) -> LanguageModel:
        """The model, in the precision in which its weights are stored, or in four bits.

        Raises NotAvailable where the folder holds none, or what four bits need is not installed.
        """
        from safetensors import SafetensorError
        from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

        from clbench.backbones.anatomy import quiet
        from clbench.backbones.language import LanguageModel
        from clbench.backbones.packed import packing
        from clbench.backbones.reading import HubTokenizer

        if self.four_bits and weights == "random":
            raise BadValue(f"random weights are never in four bits; leave out --weights, or name 'hf:{self.hub}'.")
        form = packing(f"hf:{self.hub}") if self.four_bits else {}
        folder = self.folder()
        with quiet():
            try:
                tokenizer = HubTokenizer(AutoTokenizer.from_pretrained(folder, **self._trust))
                if weights == "random":
                    return _drawn(AutoConfig.from_pretrained(folder, **self._trust), tokenizer, **self._trust)
                body = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", **form, **self._trust)
            except (OSError, ValueError, KeyError, SafetensorError) as error:
                self._refuse_code(folder, error)
                reason = f"holds no causal language model that can be read: {_first_line(error)}"
                raise NotAvailable(f"'{folder}' {reason}.") from error
        return LanguageModel(body, tokenizer)

    def outline(self, precision: torch.dtype, classes: Callable[[], int]) -> LanguageModel:
        """The model of its configuration, the only file that is read. Raises NotAvailable."""
        from transformers import AutoConfig

        wanted = ("config.json", _CODE) if self.trusted else ("config.json",)
        place = self.path or self._fetched(wanted, "config.json")
        try:
            config = AutoConfig.from_pretrained(place, **self._trust)
            model = _outlined(config, precision, **self._trust)
        except (OSError, ValueError) as error:
            self._refuse_code(place, error)
            raise NotAvailable(
                f"no configuration of a language model in '{place}' ({_first_line(error)}); pass --backbone "
                f"{self.name}@FOLDER with a folder that holds a config.json."
            ) from error
        model.four_bits = self.four_bits
        return model

    @property
    def _trust(self) -> dict[str, bool]:
        """Said aloud, because transformers would ask whoever sits at the terminal."""
        return {"trust_remote_code": self.trusted}

    def _refuse_code(self, folder: Path, error: Exception) -> None:
        """Raise NotAvailable where `error` is that the model wants to run code of its own."""
        if not self.trusted and "trust_remote_code" in str(error):
            raise NotAvailable(
                f"the model in '{folder}' wants to run Python code of its own, which may do anything; read its *.py "
                "files, and add --trust-remote-code where you trust them."
            ) from error


@dataclass(frozen=True)
class ShapeSource:
    """An architecture that reads bytes; its weights are shipped beside this module, or random, drawn with seed 0."""

    name: str
    config: Callable[[], Any]
    shipped: Path | None = None

    def at(self, path: Path) -> ShapeSource:
        """Raises BadValue: there is one set of weights."""
        raise BadValue(f"'{self.name}' takes no path; leave out '@{path}', or use hf:NAME@FOLDER.")

    def state(self) -> str:
        """Whether its weights are shipped."""
        return "random" if self.shipped is None else "shipped"

    def weights_sha256(self) -> str:
        """Hash of the shipped file; `random` where none is."""
        if self.shipped is None:
            return "random"
        if not self.shipped.is_file():
            raise NotAvailable(
                f"the weights of '{self.name}' are missing at '{self.shipped}'; "
                f"make them with 'clbench pretrain {self.name}'."
            )
        return hashlib.sha256(self.shipped.read_bytes()).hexdigest()

    def outline(self, precision: torch.dtype, classes: Callable[[], int]) -> LanguageModel:
        """The model of this shape."""
        return _outlined(self.config(), precision)

    def build(self, classes: int, seed: int, *, normalisation: str, weights: str) -> LanguageModel:
        """The model in float32; refuses weights that are not the ones on the model card."""
        import json

        from safetensors.torch import load_file

        from clbench.backbones.reading import Bytes

        model = _drawn(self.config(), Bytes())
        if self.shipped is None or weights == "random":
            return model
        found = self.weights_sha256()
        expected = json.loads(self.shipped.with_suffix(".json").read_text(encoding="utf-8"))["sha256"]
        if found != expected:
            raise NotAvailable(
                f"'{self.shipped}' has sha256 {found[:12]}…, its card says {expected[:12]}…; "
                f"reinstall clbench or make both with 'clbench pretrain {self.name}'."
            )
        model.body.load_state_dict(load_file(self.shipped), strict=False)
        return model


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0].rstrip(".")


def _outlined(config: Any, precision: torch.dtype, trust_remote_code: bool = False) -> LanguageModel:
    """A model of this shape on the device `meta`; no text is read by it."""
    import torch
    from transformers import AutoModelForCausalLM

    from clbench.backbones.anatomy import quiet
    from clbench.backbones.language import LanguageModel
    from clbench.backbones.reading import Bytes

    with quiet(), torch.device("meta"):
        trust = {"trust_remote_code": trust_remote_code}
        return LanguageModel(AutoModelForCausalLM.from_config(config, dtype=precision, **trust), Bytes())


def _drawn(config: Any, tokenizer: Any, trust_remote_code: bool = False) -> LanguageModel:
    """A model with random weights, always the same."""
    import torch
    from transformers import AutoModelForCausalLM

    from clbench.backbones.anatomy import quiet
    from clbench.backbones.language import LanguageModel

    with torch.random.fork_rng(devices=[]), quiet():
        torch.manual_seed(0)
        body = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
        return LanguageModel(body, tokenizer)


@functools.lru_cache(maxsize=32)
def _sha256(files: tuple[tuple[str, int, int], ...]) -> str:
    """Hash over files' names and contents; remembered by size and time, since it takes long for large ones."""
    total = hashlib.sha256()
    for name, _, _ in files:
        total.update(Path(name).name.encode())
        with Path(name).open("rb") as file:
            total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()


def hub_family(name: str) -> HubSource:
    """`hf:NAME`: a name on the hub, or any name before '@FOLDER'."""
    return HubSource(f"hf:{name}", name)


def packed_family(name: str) -> HubSource:
    """`hf-4bit:NAME`: the same in four bits."""
    return HubSource(f"hf-4bit:{name}", name, four_bits=True)


def _llama(**fields: Any) -> Any:
    from transformers import LlamaConfig

    return LlamaConfig(**fields)


def _nano() -> Any:
    """2 blocks of width 32 that read bytes, for tests; drawn so wide that little is needed to move an answer."""
    return _llama(
        vocab_size=259,
        hidden_size=32,
        intermediate_size=64,
        initializer_range=0.1,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        pad_token_id=256,
        bos_token_id=257,
        eos_token_id=258,
    )


def _tiny() -> Any:
    from clbench.backbones.tiny_lm import tiny_lm_config

    return tiny_lm_config()


def _one_billion() -> Any:
    """The shape of Llama-3.2-1B."""
    return _llama(
        vocab_size=128256,
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=16,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=64,
        max_position_embeddings=131072,
        tie_word_embeddings=True,
    )


def _seven_billion() -> Any:
    """The shape of Llama-2-7B."""
    return _llama(
        vocab_size=32000,
        hidden_size=4096,
        intermediate_size=11008,
        num_hidden_layers=32,
        num_attention_heads=32,
        max_position_embeddings=4096,
        tie_word_embeddings=False,
    )


TINY_LM = ShapeSource("tiny-lm", _tiny, Path(__file__).with_name("tiny-lm.safetensors"))
NANO_LM = ShapeSource("nano-lm", _nano)
LLAMA_1B_SHAPE = ShapeSource("llama-1b-shape", _one_billion)
LLAMA_7B_SHAPE = ShapeSource("llama-7b-shape", _seven_billion)
LLAMA_32_1B = HubSource("llama-3.2-1b-instruct", "meta-llama/Llama-3.2-1B-Instruct")
LLAMA_2_7B = HubSource("llama-2-7b-chat", "meta-llama/Llama-2-7b-chat-hf")
GEMMA_2B = HubSource("gemma-2b-it", "google/gemma-2b-it")
MISTRAL_7B = HubSource("mistral-7b-instruct", "mistralai/Mistral-7B-Instruct-v0.3")
