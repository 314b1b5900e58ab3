"""Where data sets lie: the user's word, the variable, the cache."""

from __future__ import annotations

from pathlib import Path

import pytest

from clbench.datafolder import folder, root
from clbench.errors import BadValue


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("CLBENCH_DATA", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    return tmp_path


def test_the_variable_comes_first(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    monkeypatch.setenv("CLBENCH_DATA", "~/sets")
    assert root() == home / "sets"


def test_an_empty_variable_is_none(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    monkeypatch.setenv("CLBENCH_DATA", "")
    assert root() == home / ".cache" / "clbench" / "data"


@pytest.mark.parametrize(("cache", "expected"), [("/caches", "/caches"), ("caches", "~/.cache"), ("", "~/.cache")])
def test_the_cache_is_the_users(monkeypatch: pytest.MonkeyPatch, cache: str, expected: str) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", cache)
    assert root() == Path(expected).expanduser() / "clbench" / "data"


@pytest.mark.parametrize(("said", "why"), [("{}/file", "which is a file"), ("~nobody-at-all/data", "no such home")])
def test_a_variable_that_names_no_folder_is_refused(
    said: str, why: str, monkeypatch: pytest.MonkeyPatch, home: Path
) -> None:
    (home / "file").touch()
    monkeypatch.setenv("CLBENCH_DATA", said.format(home))
    with pytest.raises(BadValue, match=why):
        root()


def test_a_folder_is_where_the_user_says(home: Path) -> None:
    assert folder("trace", None) == root() / "trace"
    assert folder("trace", Path("~/mine")) == home / "mine"


def test_a_relative_folder_does_not_follow_the_working_directory(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    monkeypatch.chdir(home)
    assert folder("trace", Path("mine")) == home / "mine"
    assert not root().exists()
