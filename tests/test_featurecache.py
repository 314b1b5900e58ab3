"""Feature cache: exact, bounded, never in the way."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from clbench.cli import app
from clbench.errors import BadValue, StoreError
from clbench.featurecache import FeatureCache


def features(rows: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, 4)).astype(np.float32)


@pytest.fixture
def cache(tmp_path: Path) -> FeatureCache:
    return FeatureCache(tmp_path / "features", limit_bytes=4_000)


def test_what_was_put_comes_back_to_the_bit(cache: FeatureCache) -> None:
    assert cache.get("a") is None
    cache.put("a", features(10))
    found = cache.get("a")
    assert found is not None
    assert found.tobytes() == features(10).tobytes()


def test_the_longest_unused_goes_first(cache: FeatureCache) -> None:
    for second, key in enumerate("abc"):
        cache.put(key, features(60))  # 960 bytes, a header of 128 and a seal of 32
        os.utime(cache.folder / f"{key}.npy", (second, second))
    assert cache.get("a") is not None  # now the latest used
    cache.put("d", features(60))
    assert [entry.path.stem for entry in cache.entries()] == ["c", "a", "d"]
    assert sum(entry.bytes for entry in cache.entries()) <= cache.limit_bytes


def test_what_does_not_fit_is_not_kept_and_drives_nothing_out(cache: FeatureCache) -> None:
    cache.put("small", features(10))
    cache.put("large", features(1_000))
    assert [entry.path.stem for entry in cache.entries()] == ["small"]


def test_a_file_with_a_wrong_bit_is_as_good_as_none(cache: FeatureCache) -> None:
    cache.put("a", features(10))
    path = cache.folder / "a.npy"
    content = bytearray(path.read_bytes())
    content[-50] ^= 1
    path.write_bytes(content)
    assert cache.get("a") is None
    assert cache.holds("a")
    assert not cache.holds("b")


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY torn", b"something else"])
def test_a_torn_file_is_as_good_as_none(cache: FeatureCache, content: bytes) -> None:
    cache.put("a", features(10))
    (cache.folder / "a.npy").write_bytes(content)
    assert cache.get("a") is None
    cache.put("a", features(10, seed=1))
    found = cache.get("a")
    assert found is not None
    assert (found == features(10, seed=1)).all()


def test_a_place_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("a file where the folder should be")
    cache = FeatureCache(tmp_path / "file" / "features", limit_bytes=4_000)
    cache.put("a", features(10))
    assert cache.get("a") is None


def test_a_folder_that_may_not_be_entered_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*args: object, **kwargs: object) -> None:
        raise PermissionError(13, "Permission denied")

    cache = FeatureCache(tmp_path / "features", limit_bytes=4_000)
    cache.put("a", features(10))
    with monkeypatch.context() as patch:
        for name in ("exists", "stat", "read_bytes", "glob"):
            patch.setattr(Path, name, denied)
        assert cache.get("a") is None
        assert not cache.holds("a")
        cache.put("b", features(10))
        for asked in (cache.entries, cache.clear):
            with pytest.raises(StoreError, match="change its permissions"):
                asked()
    assert cache.get("a") is not None


def test_what_a_killed_writer_left_is_counted_and_goes_first(cache: FeatureCache) -> None:
    cache.put("a", features(60))
    left = cache.folder / ".b.npy.x1y2z3.tmp"
    left.write_bytes(bytes(2_000))
    os.utime(left, (1, 1))
    assert sum(entry.bytes for entry in cache.entries()) == 2_000 + 60 * 16 + 128 + 32
    cache.put("c", features(60))
    assert not left.exists()
    assert {entry.path.stem for entry in cache.entries()} == {"a", "c"}
    left.write_bytes(bytes(2_000))
    assert cache.clear() > 4_000
    assert list(cache.folder.iterdir()) == []


def test_the_limit_counts_all_bytes_of_a_file(tmp_path: Path) -> None:
    whole = 10 * 16 + 128 + 32
    for limit, kept in ((whole - 1, 0), (whole, 1)):
        cache = FeatureCache(tmp_path / str(limit), limit)
        cache.put("a", features(10))
        assert len(cache.entries()) == kept


def test_the_command_shows_and_clears(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CLBENCH_CACHE_GIB", "0.5")
    FeatureCache.usual().put("abc", features(10))
    shown = CliRunner().invoke(app, ["cache"])
    assert shown.exit_code == 0, shown.output
    assert shown.stdout.startswith("abc  0.0 MiB")
    assert f"0.0 MiB of 512.0 MiB in '{tmp_path / 'clbench' / 'features'}'" in shown.stdout
    assert CliRunner().invoke(app, ["cache", "--clear"]).exit_code == 0
    assert FeatureCache.usual().entries() == []


@pytest.mark.parametrize("said", ["much", "-1", "nan", "inf"])
def test_a_limit_that_is_none_is_refused(said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLBENCH_CACHE_GIB", said)
    with pytest.raises(BadValue, match="takes a number of GiB"):
        FeatureCache.usual()


@pytest.mark.parametrize(("said", "wanted"), [("on", True), ("off", False), ("", True), (None, True)])
def test_it_is_used_unless_the_user_says_no(said: str | None, wanted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CLBENCH_CACHE") if said is None else monkeypatch.setenv("CLBENCH_CACHE", said)
    assert (FeatureCache.wanted() is not None) is wanted


def test_another_word_for_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLBENCH_CACHE", "yes")
    with pytest.raises(BadValue, match="set it to 'off'"):
        FeatureCache.wanted()
