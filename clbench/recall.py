"""Recall: what the untouched backbone says of examples as they are, looked at once for all rounds."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import torch
from timm.layers.config import use_fused_attn
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from clbench import __version__, checkpoint, determinism
from clbench.featurecache import FeatureCache
from clbench.meter import stopwatch
from clbench.model import Classifier, ImageClassifier
from clbench.origin import device_name, versions
from clbench.plan import Cell
from clbench.protocol import digest
from clbench.stream import Examples, Union

CHECKED = 4
"""How many examples of a file from the disk are looked at again before the others are believed."""
TOLERANCE = 0.02
"""How far those may lie from what was kept, in units of their largest number: another batch rounds otherwise."""
PIECE = 2**20
"""How many numbers of a tensor are added up at once."""
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class Body:
    """Whether a backbone is at the moment what it was before a method attached anything."""

    def __init__(self, model: Classifier) -> None:
        self._body, self._modules = model.body, dict(model.body.named_modules())
        self._tensors = _tensors(model.body)
        self.sha256 = checkpoint.sha256(self._tensors)
        """Of the weights as they were given."""
        device = next(iter(self._tensors.values())).device
        self._places = torch.arange(1, 2 * PIECE, 2, device=device)
        self._sums = self._summed()

    def has_its_weights(self) -> bool:
        """Whether they are the numbers that they were; all are read, for fused optimisers leave no other trace."""
        return self._summed() == self._sums

    def _summed(self) -> list[int]:
        """A sum of each piece of each tensor, its numbers' bits taken for integers and each multiplied by its place.

        The places are odd numbers, so that no number can change unseen, and no two can change places. Made where they
        lie.
        """
        bits = [tensor.detach().view(_INTEGERS[tensor.element_size()]).flatten() for tensor in self._tensors.values()]
        pieces = [piece for numbers in bits for piece in numbers.split(PIECE)]
        return torch.stack([(piece * self._places[: len(piece)]).sum() for piece in pieces]).tolist()

    def is_untouched(self) -> bool:
        """Every layer in its place, or behind an adapter that is off; no other tensor, no hook, nothing added."""
        stand_ins: list[str] = []
        left = dict(self._modules)
        for path, module in self._body.named_modules():
            given = left.pop(path, None)
            if given is None:
                if not path.startswith(tuple(stand_ins)):
                    return False
                continue
            if module is not given:
                if not (getattr(module, "is_off", False) and getattr(module, "base", None) is given):
                    return False
                stand_ins.append(f"{path}.")
            if _is_watched(module) or _is_watched(given):
                return False
            mine = {f"{path}.{name}".lstrip("."): tensor for name, tensor in _tensors(given, recurse=False).items()}
            if any(self._tensors.get(name) is not tensor for name, tensor in mine.items()):
                return False
        return not left


def _tensors(module: nn.Module, recurse: bool = True) -> dict[str, Tensor]:
    """Its parameters and buffers, by name."""
    return dict([*module.named_parameters(recurse=recurse), *module.named_buffers(recurse=recurse)])


def _is_watched(module: nn.Module) -> bool:
    """Whether a call of it may do more than its class says."""
    return bool(module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module) or module.training)


class Frozen:
    """The backbone as it was given to a run: what it says of examples, and where that is kept.

    Made before a method attaches anything. `cache`: None keeps nothing on the disk.
    """

    def __init__(self, cell: Cell, model: ImageClassifier, cache: FeatureCache | None) -> None:
        self.model, self.cache, self.body = model, cache, Body(model)
        recipe, card = cell.suite.recipe, cell.protocol
        self.batch_size = recipe.eval_batch_size
        self.device = next(model.body.parameters()).device
        self.autocast = recipe.precision == "bfloat16"
        self._terms = {
            "clbench": [__version__, _sources_sha256(), versions(), device_name(self.device)],
            "backbone": [card.backbone, self.body.sha256],
            "inputs": [card.transform, card.normalisation],
            "precision": recipe.precision,
        }
        self.computed = self.read = 0
        """How many examples were looked at, and how many the cache knew."""
        self.ignored: list[str] = []
        """Sentences on what the cache held and could not be used."""

    def rows(self, examples: Examples) -> Tensor:
        """Features of all examples and, last, the seconds that they took: `[n, width + 1]` on the CPU.

        They are looked at in their own order in batches of the scoring's size, or read from the cache: so no answer
        depends on what was kept. Raises nothing for what the disk has lost.
        """
        rounding = [self.batch_size, torch.get_num_threads(), determinism.flags(), _attention()]
        seen = [examples.sha256(), _pixels_sha256(examples)]
        key = digest({**self._terms, "rounding": rounding, "examples": seen}, 32)
        found = self._kept(key, examples)
        if found is not None:
            self.read += len(examples)
            return found
        found = self._looked_at(examples, self.batch_size)
        if self.cache is not None:
            self.cache.put(key, found.numpy())
        self.computed += len(examples)
        return found

    def _kept(self, key: str, examples: Examples) -> Tensor | None:
        """What the disk holds under `key`; None where that is nothing, or not what the backbone says."""
        kept = None if self.cache is None else self.cache.get(key)
        if kept is not None and kept.shape == (len(examples), self.model.width + 1):
            rows = torch.from_numpy(kept)
            few = self._looked_at(examples, CHECKED, CHECKED)[:, :-1]
            scale = few.abs().max()
            if torch.isfinite(rows).all() and (rows[: len(few), :-1] - few).abs().max() <= TOLERANCE * scale:
                return rows
        if self.cache is not None and self.cache.holds(key):
            self.ignored.append(f"the kept features {key} are torn or not this backbone's; they were computed anew.")
        return None

    def _looked_at(self, examples: Examples, batch_size: int, most: int | None = None) -> Tensor:
        """Features and, last, seconds of the first `most` examples, all if None: `[n, width + 1]` on the CPU."""
        found = []
        for indices in torch.arange(min(len(examples), most or len(examples))).split(batch_size):
            inputs, _ = examples.batch(indices, self.device)
            with stopwatch(self.device) as seconds:
                features = self.model.pool(self.model.encode(self.model.tokens(inputs))).float().cpu()
            found.append(torch.cat([features, torch.full((len(features), 1), seconds[0] / len(features))], dim=1))
        return torch.cat(found)


class Recall:
    """What the frozen backbone says of `parts`, row by row, for `ImageClassifier.recall` while it is asked.

    All of a part is looked at, or read, the first time that one of its examples is asked for as it is, not augmented.
    What a look took is charged whenever its features are recalled (`settle`).
    """

    def __init__(self, frozen: Frozen, parts: Sequence[Examples]) -> None:
        self.frozen, self.parts = frozen, tuple(parts)
        self._first = np.cumsum([0, *(len(part) for part in self.parts)])
        self._rows: Tensor | None = None  # [examples of all parts, width + 1], on the CPU
        self.forget()
        self._asked: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
        self._owed = self._spent = 0.0

    def forget(self) -> None:
        """Know nothing of any example; what is on the disk is read again."""
        self._known = [False] * len(self.parts)

    @contextlib.contextmanager
    def answering(self) -> Iterator[None]:
        """Within the block the model recalls what it is asked for; afterwards none of it is within a plugin's reach."""
        self._owed = self._spent = 0.0
        self.frozen.model.recall = self._of
        try:
            yield
        finally:
            self.frozen.model.recall = None
            self._asked.clear()

    def note(self, inputs: Tensor, places: Tensor) -> None:
        """`inputs` `[n, …]` are the examples at `places` `[n]`, counted over all parts, as they are."""
        self._asked[inputs] = (places, inputs._version)

    def settle(self) -> float:
        """Seconds that the last block would have taken longer without; negative where it looked at more than asked."""
        return self._owed - self._spent

    def _of(self, inputs: Tensor) -> Tensor | None:
        """The features `[n, width]` of noted inputs; None for others, and while the backbone is another."""
        places, version = self._asked.get(inputs, (None, None))
        asked_alike = torch.is_autocast_enabled(self.frozen.device.type) == self.frozen.autocast
        if places is None or inputs._version != version or torch.is_grad_enabled() or not asked_alike:
            return None
        if not (self.frozen.body.is_untouched() and self._has_its_weights()):
            return None
        for part in np.unique(np.searchsorted(self._first, places.numpy(), side="right") - 1).tolist():
            if not self._known[part]:
                self._learn(part)
        assert self._rows is not None
        rows = self._rows[places]
        self._owed += float(rows[:, -1].double().sum())
        return rows[:, :-1].to(self.frozen.device, non_blocking=True)

    def _has_its_weights(self) -> bool:
        with stopwatch(self.frozen.device) as seconds:
            has = self.frozen.body.has_its_weights()
        self._spent += seconds[0]
        return has

    def _learn(self, part: int) -> None:
        """Fill in the rows of a part."""
        first, last = self._first[part : part + 2].tolist()
        with stopwatch(self.frozen.device) as seconds:
            found = self.frozen.rows(self.parts[part])
            if self._rows is None:
                self._rows = torch.zeros(int(self._first[-1]), found.shape[1])
            self._rows[first:last] = found
        self._known[part] = True
        self._spent += seconds[0]


@cache
def _sources_sha256() -> str:
    """Of all that shapes inputs and features here: transforms, decoding, backbones."""
    folder = Path(__file__).parent
    sources = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.py")}
    return digest({name: hashlib.sha256(content).hexdigest() for name, content in sources.items()})


def _attention() -> list[bool]:
    """Which forms of attention PyTorch and timm may take; they round otherwise."""
    cuda = torch.backends.cuda
    kernels = (cuda.flash_sdp_enabled, cuda.mem_efficient_sdp_enabled, cuda.math_sdp_enabled, cuda.cudnn_sdp_enabled)
    return [bool(use_fused_attn()), *(bool(enabled()) for enabled in kernels)]  # type: ignore[no-untyped-call]


def _pixels_sha256(examples: Examples) -> str:
    """Of decoded pixels, where the examples' own hash is of the encoded ones; '' for others."""
    if isinstance(examples, Union):
        return "".join(_pixels_sha256(part) for part in examples.parts)
    return str(getattr(getattr(examples, "examples", examples), "pixels_sha256", ""))  # behind a vault, or not


def of(frozen: Frozen | None, parts: Sequence[Examples]) -> Recall | None:
    """What it says of `parts`; None where there is none."""
    return None if frozen is None else Recall(frozen, parts)


def made(cell: Cell, model: Classifier, cache: FeatureCache | None) -> Frozen | None:
    """The backbone of `model` as it is now; None where it takes no images."""
    return Frozen(cell, model, cache) if isinstance(model, ImageClassifier) else None
