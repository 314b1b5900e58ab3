"""Tags: vision backbones whose weights are not shipped, and how their files are found."""

from __future__ import annotations

import difflib
import functools
import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from clbench.errors import BadValue, NotAvailable, UnknownName

if TYPE_CHECKING:
    import torch

    from clbench.backbones.vision import VisionClassifier

_IBOT_22K = "https://lf3-nlp-opensource.bytetos.com/obj/nlp-opensource/archive/2022/ibot/vitb_16_pt22k/checkpoint.pth"


@dataclass(frozen=True)
class TaggedSource:
    """A vision transformer by name and a file that holds its weights. Making one imports no torch."""

    name: str
    """For the protocol card; what stands before '@' when a file is given."""
    architecture: str
    """timm's name of it, or one of `vision.OWN`."""
    hub: str = ""
    """The repository on the Hugging Face hub; empty: nothing is downloaded."""
    file: str = "model.safetensors"
    size_mb: int | None = None
    """As published, in millions of bytes."""
    advice: str = ""
    """How to come by the file where there is no hub."""
    form: Literal["timm", "ibot"] = "timm"
    """How the file is written."""
    path: Path | None = None
    """The file, where it was given."""

    def at(self, path: Path) -> TaggedSource:
        """The same backbone with the weights at `path`."""
        return replace(self, path=path.expanduser())

    def state(self) -> Literal["here", "not here"]:
        """Whether the weights are on this machine; looks at no content and asks no network."""
        found = self.path.is_file() if self.path else self._cached() is not None
        return "here" if found else "not here"

    def weights_file(self) -> Path:
        """The given file, else the one in the Hugging Face cache, else a download into it.

        Raises NotAvailable, which names the file to get and how to pass it.
        """
        if self.path is None:
            return self._cached() or self._downloaded()
        if not self.path.is_file():
            raise NotAvailable(f"no file at '{self.path}'; pass --backbone {self.name}@PATH with an existing one.")
        return self.path

    def weights_sha256(self) -> str:
        """Hash of the weights file."""
        return file_sha256(self.weights_file())

    def outline(self, precision: torch.dtype, classes: Callable[[], int]) -> VisionClassifier:
        """The classifier of this architecture; whatever the passes' precision, its weights are float32."""
        from clbench.backbones import vision

        return vision.outlined(functools.partial(vision.new_body, self.architecture), classes())

    def build(
        self, classes: int, seed: int, *, normalisation: str = "none", weights: str = "default"
    ) -> VisionClassifier:
        """The classifier. Raises NotAvailable where the file is missing or holds something else."""
        from clbench.backbones import ibot, vision

        path = None if weights == "random" else self.weights_file()
        body = vision.new_body(self.architecture)
        if path is not None:
            {"timm": vision.load, "ibot": ibot.load}[self.form](body, path)
        return vision.VisionClassifier(body, classes, seed, normalisation)

    def _cached(self) -> Path | None:
        if not self.hub:
            return None
        from huggingface_hub import try_to_load_from_cache

        found = try_to_load_from_cache(self.hub, self.file)
        return Path(found) if isinstance(found, str) else None

    def _downloaded(self) -> Path:
        give = f"put the file anywhere and pass --backbone {self.name}@PATH, or --weights random for timing alone"
        if not self.hub:
            raise NotAvailable(f"the weights of '{self.name}' have to be brought: {self.advice}, {give}.")
        from huggingface_hub import constants, get_hf_file_metadata, hf_hub_download, hf_hub_url

        url = hf_hub_url(self.hub, self.file)
        try:
            get_hf_file_metadata(url)  # fails at once; the download would try again for half a minute
            return Path(hf_hub_download(self.hub, self.file))
        except Exception as error:  # the hub's own errors, those of its HTTP library, or of the disk
            size = f" ({self.size_mb} MB)" if self.size_mb else ""
            raise NotAvailable(
                f"the weights of '{self.name}' are not in the Hugging Face cache '{constants.HF_HUB_CACHE}' and their "
                f"download failed with {type(error).__name__}; get {url}{size} where there is internet, {give}."
            ) from error


def file_sha256(path: Path) -> str:
    """SHA-256 of a file; read once in a process as long as size and time stay what they were."""
    facts = path.stat()
    return _sha256(path.resolve(), facts.st_size, facts.st_mtime_ns)


@functools.cache
def _sha256(path: Path, size: int, changed_ns: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _from_timm(name: str, architecture: str, size_mb: int) -> TaggedSource:
    return TaggedSource(name, architecture, hub=f"timm/{architecture}", size_mb=size_mb)


VIT_B16_IN21K = _from_timm("vit-b16-in21k", "vit_base_patch16_224.augreg_in21k", 410)
VIT_B16_IN1K = _from_timm("vit-b16-in1k", "vit_base_patch16_224.augreg_in21k_ft_in1k", 346)
VIT_B16_DINO = _from_timm("vit-b16-dino", "vit_base_patch16_224.dino", 343)
VIT_S16_IN21K = _from_timm("vit-s16-in21k", "vit_small_patch16_224.augreg_in21k", 120)
VIT_TI16_IN21K = _from_timm("vit-ti16-in21k", "vit_tiny_patch16_224.augreg_in21k", 39)
VIT_B16_IBOT21K = TaggedSource(
    "vit-b16-ibot21k", "vit_base_patch16_224", form="ibot", advice=f"download iBOT's {_IBOT_22K}"
)
CIFAR_VIT = TaggedSource(
    "cifar-vit", "cifar-vit", advice="make cifar-vit.safetensors with 'clbench pretrain cifar-vit'"
)


def timm_family(name: str) -> TaggedSource:
    """`timm:NAME`: any vision transformer of timm; its weights come from a given file or from timm's own place.

    Raises BadValue for a model that timm lacks, UnknownName for a tag that the model lacks.
    """
    from timm.models import get_pretrained_cfg, list_pretrained

    model, _, tag = name.partition(".")
    _refuse_foreign(model)
    try:
        facts = get_pretrained_cfg(name)
    except RuntimeError:
        tags = [each.partition(".")[2] for each in list_pretrained(f"{model}.*")]
        raise UnknownName(f"tag of timm's {model}", tag, tags) from None
    hub = (facts.hf_hub_id if facts else None) or ""
    file = (facts.hf_hub_filename if facts else None) or TaggedSource.file
    return TaggedSource(f"timm:{name}", name, hub, file, advice=f"get a checkpoint of timm's {model}")


def ibot_family(name: str) -> TaggedSource:
    """`ibot:NAME@PATH`: a vision transformer by timm's name of it, with weights as iBOT publishes them."""
    _refuse_foreign(name)
    return TaggedSource(f"ibot:{name}", name, form="ibot", advice="get a checkpoint that iBOT wrote")


def _refuse_foreign(model: str) -> None:
    """Raises BadValue for a name that timm has not, and for a model that is no vision transformer of plain blocks."""
    import torch
    from timm.models import is_model, list_models

    from clbench.backbones import vision

    if not is_model(model):
        close = difflib.get_close_matches(model, list_models(), n=3)
        hint = f" Did you mean {', '.join(close)}?" if close else ""
        raise BadValue(f"timm has no model called '{model}'.{hint} 'timm.list_models()' names all of them.")
    with torch.device("meta"):
        vision.new_body(model)
