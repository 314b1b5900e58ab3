from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest

from clbench import catalog
from clbench.errors import BadValue, ClbenchError, UnknownName

MINE = """
from clbench.method import Method
class Mine(Method):
    name = "mine"
    weight: float = 1.0
    def plugins(self, bench):
        return []
"""


def variants(suite: str, *specs: str, settings: dict[str, dict[str, str]] | None = None) -> dict[tuple[str, str], str]:
    return {
        (row.method.name, row.variant): row.fingerprint
        for row in catalog.rows(catalog.suite(suite), specs, settings or {})
    }


def test_every_listed_method_and_suite_loads_under_its_name() -> None:
    assert {name: catalog.method_type(name).cls.name for name in catalog.methods()} == {n: n for n in catalog.methods()}
    assert {name: catalog.suite(name).name for name in catalog.suites()} == {n: n for n in catalog.suites()}


def test_papers_of_the_contents_page_are_those_of_the_methods() -> None:
    assert {n: e.paper for n, e in catalog.methods().items()} == {
        n: catalog.method_type(n).cls.paper for n in catalog.methods()
    }


DECLARED = {
    "buffer_samples": {"replay", "gem", "agem", "derpp", "er-ace", "icl"},
    "class_statistics": {
        *("ncm", "icl", "s-prompt", "hide-prompt", "hidelora", "treelora", "aper-adapter", "ranpac", "ease", "slca"),
    },
    "task_id_at_test": {"pertask"},
    "stored_gradients": {"ogd"},
}


@pytest.mark.parametrize("resource", DECLARED)
def test_who_keeps_or_needs_what(resource: str) -> None:
    kept = {name: catalog.method_type(name).cls().resources() for name in catalog.methods()}
    assert {name for name, declared in kept.items() if getattr(declared, resource)} == DECLARED[resource]


def test_rows_of_a_suite_are_its_contenders() -> None:
    found = variants("quick")
    assert ("seqlora", "") in found
    assert ("seqlora", "unmasked") in found
    assert len(found) == len(catalog.suite("quick").contenders)


def test_a_variant_says_what_differs_and_keeps_a_known_label() -> None:
    seen = {"seqlora": {"head_masking": "seen"}}
    assert list(variants("quick", "seqlora", settings=seen)) == [("seqlora", "unmasked")]
    assert list(variants("tiny", "seqlora", settings=seen)) == [("seqlora", "head_masking=seen")]
    assert list(variants("tiny", "seqlora", settings={"": {"epochs": "none"}})) == [("seqlora", "")]


def test_a_changed_recipe_is_part_of_the_variant() -> None:
    suite = catalog.suite("tiny", {"epochs": "1", "lora_sites": "q, k"})
    assert (suite.recipe.epochs, suite.recipe.lora_sites) == (1, ("q", "k"))
    (row,) = catalog.rows(suite, ["ncm"], {})
    assert row.variant == "recipe.epochs=1, recipe.lora_sites=q,k"
    same = catalog.suite("tiny", {"epochs": str(catalog.suite("tiny").recipe.epochs)})
    assert catalog.rows(same, ["ncm"], {})[0].variant == ""


def test_a_suites_own_settings_make_no_variant_and_can_be_changed() -> None:
    suite = catalog.suite("tiny")
    assert catalog.rows(suite, ["replay"], {})[0].method.model_dump()["buffer_samples"] == 24
    (row,) = catalog.rows(suite, ["replay"], {"replay": {"buffer_samples": "12"}})
    assert (row.variant, row.method.model_dump()["buffer_samples"]) == ("buffer_samples=12", 12)
    plain = replace(suite, settings={})
    assert catalog.rows(plain, ["replay"], {})[0].method.model_dump()["buffer_samples"] != 24


def test_a_method_named_twice_is_one_row() -> None:
    assert list(variants("tiny", "ncm", "ncm")) == [("ncm", "")]


def test_a_bare_setting_needs_one_method() -> None:
    with pytest.raises(BadValue, match="2 methods"):
        variants("tiny", "ncm", "seqlora", settings={"": {"epochs": "1"}})
    assert list(variants("quick", "seqlora", settings={"": {"epochs": "1"}})) == [("seqlora", "epochs=1")]


def test_a_file_is_fingerprinted_by_its_text(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(MINE, encoding="utf-8")
    first = catalog.method_type(f"{path}:Mine")
    assert first.fingerprint == catalog.current_fingerprint(str(path))
    path.write_text(MINE.replace("1.0", "2.0"), encoding="utf-8")
    second = catalog.method_type(str(path))
    assert second.fingerprint != first.fingerprint
    assert second.cls.model_fields["weight"].default == 2.0


def test_a_class_that_the_file_lacks(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(MINE, encoding="utf-8")
    with pytest.raises(UnknownName, match="Did you mean 'Mine'"):
        catalog.method_type(f"{path}:Mne")


def test_a_method_of_an_installed_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "other_package.py").write_text(MINE, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    there = SimpleNamespace(name="mine", value="other_package:Mine", dist=SimpleNamespace(name="other"))
    absent = SimpleNamespace(name="gone", value="no_such_package.module:Gone", dist=None)
    monkeypatch.setattr(metadata, "entry_points", lambda group: [there, absent])
    assert catalog.methods()["mine"].line == "from the package 'other'"
    assert list(variants("tiny", "mine")) == [("mine", "")]
    current = catalog.current_fingerprints()
    assert current["mine"] == catalog.method_type("mine").fingerprint
    assert "gone" not in current
    with pytest.raises(ClbenchError, match="no_such_package"):
        catalog.method_type("gone")


def test_fingerprints_are_those_of_the_classes_and_need_no_import() -> None:
    current = catalog.current_fingerprints()
    assert current == {name: catalog.method_type(name).fingerprint for name in catalog.methods()}
    program = (
        "import sys\nfrom clbench import catalog\ncatalog.current_fingerprints()\n"
        "assert not {'torch', 'avalanche'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_none_is_a_word_where_a_field_has_it() -> None:
    (row,) = catalog.rows(catalog.suite("tiny"), ["seqlora"], {"seqlora": {"learning_rate": "none"}})
    assert row.method.learning_rate is None
    with pytest.raises(BadValue, match=r"recipe\.epochs takes a whole number; got 'none'"):
        catalog.suite("tiny", {"epochs": "none"})
