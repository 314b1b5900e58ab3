"""Code that comes with a model runs with --trust-remote-code, and never without."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import transformers
from typer.testing import CliRunner

from clbench import backbones, catalog
from clbench.backbones.language import LanguageModel
from clbench.cli import app
from clbench.errors import BadValue, NotAvailable

CODE = """
from pathlib import Path
Path({place!r}).touch()
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
class MineConfig(LlamaConfig):
    model_type = "mine"
class Mine(LlamaForCausalLM):
    config_class = MineConfig
class MineTokenizer(PreTrainedTokenizerFast):
    pass
"""


@pytest.fixture
def ran(tmp_path: Path) -> Path:
    """Is there once the model's code has run."""
    return tmp_path / "it ran"


@pytest.fixture(autouse=True)
def _cache_of_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name.startswith("transformers_modules"):
            del sys.modules[name]


def changed(path: Path, **fields: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


@pytest.fixture
def coded(saved: Callable[..., Path], ran: Path) -> Path:
    """A model whose architecture is in a Python file of its own."""
    folder = saved()
    (folder / "mine.py").write_text(CODE.format(place=str(ran)))
    maps = {"AutoConfig": "mine.MineConfig", "AutoModelForCausalLM": "mine.Mine"}
    changed(
        folder / "config.json", model_type="mine", architectures=["Mine"], auto_map=maps, max_position_embeddings=2048
    )
    return folder


def test_code_is_not_run_and_nobody_is_asked(coded: Path, ran: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("builtins.input", lambda *words: pytest.fail("transformers asked"))
    name = f"hf:mine@{coded}"
    for act in (
        lambda: backbones.build(name, 0, 0),
        lambda: backbones.build(name, 0, 0, weights="random"),
        lambda: backbones.outline(name, torch.float32, lambda: 0),
    ):
        with pytest.raises(NotAvailable, match=r"wants to run Python code of its own.*--trust-remote-code"):
            act()
    backbones.weights_sha256(name)
    assert not ran.exists()


def test_code_of_a_tokenizer_is_not_run(saved: Callable[..., Path], ran: Path) -> None:
    folder = saved()
    (folder / "mine.py").write_text(CODE.format(place=str(ran)))
    words = {"tokenizer_class": "MineTokenizer", "auto_map": {"AutoTokenizer": ["mine.MineTokenizer", None]}}
    changed(folder / "tokenizer_config.json", **words)
    with pytest.raises(NotAvailable, match="--trust-remote-code"):
        backbones.build(f"hf:mine@{folder}", 0, 0)
    assert not ran.exists()


def test_a_known_architecture_is_not_replaced_by_code(saved: Callable[..., Path], ran: Path) -> None:
    folder = saved()
    (folder / "mine.py").write_text(CODE.format(place=str(ran)))
    changed(folder / "config.json", auto_map={"AutoModelForCausalLM": "mine.Mine", "AutoConfig": "mine.MineConfig"})
    assert isinstance(backbones.build(f"hf:mine@{folder}", 0, 0), LanguageModel)
    assert not ran.exists()


def test_trusted_code_is_run_hashed_and_marked(coded: Path, ran: Path) -> None:
    name = f"hf:mine@{coded}"
    model = backbones.build(name, 0, 0, remote_code=True)
    assert isinstance(model, LanguageModel)
    assert type(model.body).__name__ == "Mine"
    assert ran.exists()
    plain, trusted = (backbones.weights_sha256(name, remote_code=yes) for yes in (False, True))
    (coded / "mine.py").write_text((coded / "mine.py").read_text() + "more = 1\n")
    assert plain == backbones.weights_sha256(name)
    assert len({plain, trusted, backbones.weights_sha256(name, remote_code=True)}) == 3
    suite = catalog.suite("tiny-text", backbone=name, remote_code=True)
    card = suite.protocol(suite.stream(), 0)
    assert card.marks == ("the backbone's own code was run (--trust-remote-code)",)
    untrusted = catalog.suite("tiny-text", backbone=name)
    assert untrusted.protocol(untrusted.stream(), 0).suite_hash != card.suite_hash


def test_the_command_takes_the_permission(coded: Path, ran: Path, tmp_path: Path) -> None:
    words = ["run", "tiny-text", "--dry-run", "--method", "icl", "--device", "cpu", "--store", str(tmp_path / "store")]
    words += ["--backbone", f"hf:mine@{coded}"]
    refused = CliRunner().invoke(app, words)
    assert refused.exit_code == 2
    assert "--trust-remote-code" in refused.stderr
    assert not ran.exists()
    done = CliRunner().invoke(app, [*words, "--trust-remote-code"])
    assert done.exit_code == 0, done.output
    assert ran.exists()


def test_a_backbone_without_code_needs_no_permission() -> None:
    with pytest.raises(BadValue, match="leave out --trust-remote-code"):
        backbones.weights_sha256("tiny-vit", remote_code=True)
