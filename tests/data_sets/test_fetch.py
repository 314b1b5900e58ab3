from __future__ import annotations

import hashlib
import io
import shutil
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from clbench.data.contents import Archive, data_set
from clbench.data.fetch import fetch, verify
from clbench.data.unpack import unpack
from clbench.errors import BadValue, NotAvailable

Shelf = Any
CONTENT = bytes(range(256)) * 400


def silent(what: str, done: int, total: int | None) -> None:
    """A report to nobody."""


@dataclass
class Site:
    """A server of one file that can break the line and knows ranges, as the real ones do."""

    content: bytes = CONTENT
    tag: str = '"one"'
    breaks_after: int | None = None
    asked: list[str | None] = field(default_factory=list)
    url: str = ""

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        wanted = handler.headers.get("Range")
        self.asked.append(wanted)
        start = 0
        if wanted and handler.headers.get("If-Range") == self.tag:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
        if start >= len(self.content):
            handler.send_error(416)
            return
        handler.send_response(206 if start else 200)
        handler.send_header("Content-Length", str(len(self.content) - start))
        handler.send_header("ETag", self.tag)
        handler.end_headers()
        handler.wfile.write(self.content[start:][: self.breaks_after])


@pytest.fixture
def site() -> Iterator[Site]:
    served = Site()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            served.answer(self)

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        served.url = f"http://127.0.0.1:{server.server_port}/file.tar"
        yield served
        server.shutdown()


def published(site: Site, content: bytes = CONTENT) -> Archive:
    return Archive("file.tar", site.url, md5=hashlib.md5(content).hexdigest())


def test_a_file_is_downloaded_and_verified(site: Site, tmp_path: Path) -> None:
    told: list[tuple[str, int, int | None]] = []
    path = fetch(published(site), tmp_path / "file.tar", data_set("cub200"), lambda *words: told.append(words))
    assert path.read_bytes() == CONTENT
    assert [entry.name for entry in tmp_path.iterdir()] == ["file.tar"]
    assert ("downloading file.tar", len(CONTENT), len(CONTENT)) in told
    assert ("checking file.tar.part", len(CONTENT), len(CONTENT)) in told


def test_a_broken_download_goes_on_where_it_stopped(site: Site, tmp_path: Path) -> None:
    site.breaks_after = 70_000
    with pytest.raises(NotAvailable, match=f"70000 of {len(CONTENT)} bytes.*put it at '{tmp_path}/file.tar'"):
        fetch(published(site), tmp_path / "file.tar", data_set("cub200"), silent)
    assert not (tmp_path / "file.tar").exists()
    site.breaks_after = None
    fetch(published(site), tmp_path / "file.tar", data_set("cub200"), silent)
    assert (tmp_path / "file.tar").read_bytes() == CONTENT
    assert site.asked == [None, "bytes=70000-"]


def test_versions_of_a_file_are_not_joined(site: Site, tmp_path: Path) -> None:
    site.breaks_after = 70_000
    with pytest.raises(NotAvailable):
        fetch(published(site), tmp_path / "file.tar", data_set("cub200"), silent)
    site.breaks_after, site.tag, site.content = None, '"two"', CONTENT[::-1]
    fetch(published(site, CONTENT[::-1]), tmp_path / "file.tar", data_set("cub200"), silent)
    assert (tmp_path / "file.tar").read_bytes() == CONTENT[::-1]


def test_a_part_that_is_too_long_is_begun_again(site: Site, tmp_path: Path) -> None:
    (tmp_path / "file.tar.part").write_bytes(CONTENT + b"more")
    (tmp_path / "file.tar.part.version").write_text(site.tag)
    fetch(published(site), tmp_path / "file.tar", data_set("cub200"), silent)
    assert (tmp_path / "file.tar").read_bytes() == CONTENT
    assert site.asked == [f"bytes={len(CONTENT) + 4}-", None]


def test_a_download_that_only_lacks_its_check_is_not_repeated(site: Site, tmp_path: Path) -> None:
    (tmp_path / "file.tar.part").write_bytes(CONTENT)
    archive = Archive("file.tar", site.url, bytes=len(CONTENT), md5=published(site).md5)
    fetch(archive, tmp_path / "file.tar", data_set("cub200"), silent)
    assert site.asked == []


def test_another_file_is_set_aside(site: Site, tmp_path: Path) -> None:
    with pytest.raises(BadValue, match=r"has the md5 .* set aside as '.*file\.tar\.part\.aside-1'"):
        fetch(published(site, b"other"), tmp_path / "file.tar", data_set("cub200"), silent)
    assert not (tmp_path / "file.tar").exists()


def test_without_the_internet_the_file_and_its_place_are_named(tmp_path: Path) -> None:
    archive = Archive("file.tar", "http://127.0.0.1:9/file.tar")
    with pytest.raises(NotAvailable) as told:
        fetch(archive, tmp_path / "file.tar", data_set("cub200"), silent)
    for words in ("file.tar could not be downloaded", f"put it at '{tmp_path}/file.tar'", "prepare cub200 --from PATH"):
        assert words in str(told.value)


def test_what_is_fetched_by_hand_is_named_with_its_home_page(shelf: Shelf) -> None:
    with pytest.raises(NotAvailable, match=r"PACS\.zip of PACS.* by hand, from https://.*put it at '.*pacs/PACS\.zip'"):
        shelf.prepare("pacs")


def test_all_missing_files_are_named_at_once(shelf: Shelf, tmp_path: Path) -> None:
    """Whoever carries them from another machine goes once."""
    made = shelf.add("imagenet-r")
    nowhere = "http://127.0.0.1:9"
    lists = tuple(replace(each, url=f"{nowhere}/{each.file}") for each in data_set("imagenet-r").lists)
    shelf.change("imagenet-r", archive=Archive("imagenet-r.tar", f"{nowhere}/imagenet-r.tar"), lists=lists)
    home = shelf.home("imagenet-r")
    with pytest.raises(NotAvailable) as told:
        shelf.prepare("imagenet-r")
    assert str(told.value).startswith("imagenet-r.tar could not be downloaded")
    assert f"put it at '{home}/imagenet-r.tar'" in str(told.value)
    both = ", ".join(f"{each.file} from {each.url}" for each in lists)
    assert str(told.value).endswith(f" Bring along, to the same folder: {both}.")
    archive = made.archive(tmp_path / "imagenet-r.tar")
    (tmp_path / lists[0].file).unlink()
    with pytest.raises(NotAvailable, match=r"PATH'\.$") as told:
        shelf.prepare("imagenet-r", archive)
    assert f"put it at '{home}/{lists[0].file}'" in str(told.value)


def test_a_data_set_is_downloaded_and_prepared(site: Site, shelf: Shelf, tmp_path: Path) -> None:
    made = shelf.add("cub200")
    site.content = made.archive(tmp_path / "CUB_200_2011.tgz").read_bytes()
    archive = Archive("CUB_200_2011.tgz", site.url, sha256=hashlib.sha256(site.content).hexdigest())
    shelf.change("cub200", archive=archive)
    ready = shelf.prepare("cub200")
    assert len(ready) == 6
    assert shelf.left("cub200") == ["CUB_200_2011.tgz", ready.folder.name]


def test_a_local_archive_with_another_checksum_is_refused(shelf: Shelf, tmp_path: Path) -> None:
    made = shelf.add("cifar100")
    archive = made.archive(tmp_path / "cifar-100-python.tar.gz")
    shelf.change("cifar100", archive=Archive("cifar-100-python.tar.gz", "https://example.org", md5="0" * 32))
    with pytest.raises(BadValue, match=r"cifar-100-python\.tar\.gz' has the md5 .* prepared as 'cifar100-subset'"):
        shelf.prepare("cifar100", archive)
    assert archive.exists()


def test_what_is_not_there_is_a_sentence(shelf: Shelf, tmp_path: Path) -> None:
    with pytest.raises(BadValue, match=r"there is nothing at '.*nowhere'"):
        shelf.prepare("cub200", tmp_path / "nowhere")
    with pytest.raises(BadValue, match="cannot be read"):
        verify(tmp_path / "nowhere", Archive("a"), data_set("cub200"), silent)


def test_an_unverified_archive_says_so(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"a")
    assert "not verified: none is published" in verify(tmp_path / "a", Archive("a"), data_set("pacs"), silent)


# archives


def archive_of(path: Path, **files: bytes) -> Path:
    with tarfile.open(path, "w:gz" if path.suffix == ".tgz" else "w") as pack:
        for name, content in files.items():
            member = tarfile.TarInfo(name.replace("__", "/"))
            member.size = len(content)
            pack.addfile(member, io.BytesIO(content))
    return path


@pytest.mark.parametrize("suffix", ["tar", "tgz"])
@pytest.mark.parametrize("keep", [0.4, 0.7])
def test_a_truncated_archive_is_named_with_the_file_inside(suffix: str, keep: float, tmp_path: Path) -> None:
    noise = hashlib.shake_128(b"noise").digest(60_000)
    path = archive_of(tmp_path / f"some.{suffix}", first__one=noise, second=noise)
    path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])
    inside = "first/one" if keep < 0.5 else "second"
    with pytest.raises(BadValue, match=rf"some\.{suffix}' is damaged or no archive at '{inside}'"):
        unpack(path, tmp_path / "out", silent)


@pytest.mark.parametrize("content", [b"", b"no archive", b"\x1f\x8b\x08 broken gzip", b"\xfd7zXZ\x00 broken"])
def test_what_is_no_archive_is_named(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "some.tgz").write_bytes(content)
    with pytest.raises(BadValue, match=r"some\.tgz' is damaged or no archive"):
        unpack(tmp_path / "some.tgz", tmp_path / "out", silent)


def test_a_damaged_byte_in_a_zip_is_named(tmp_path: Path) -> None:
    path = tmp_path / "some.zip"
    with zipfile.ZipFile(path, "w") as pack:
        pack.writestr("good.txt", "good")
        pack.writestr("folder/bad.txt", "X" * 100)
    path.write_bytes(path.read_bytes().replace(b"XXX", b"XYX", 1))
    with pytest.raises(BadValue, match=r"some\.zip' is damaged or no archive at 'folder/bad\.txt'"):
        unpack(path, tmp_path / "out", silent)


@pytest.mark.parametrize("second", ["x" * 300, "file/below"])
def test_a_file_that_has_no_place_is_the_archives_fault(second: str, tmp_path: Path) -> None:
    tar = archive_of(tmp_path / "some.tar", file=b"one", **{second: b"two"})
    with pytest.raises(BadValue, match=r"some\.tar' is refused: no file can be made of '(file/below|x+)'"):
        unpack(tar, tmp_path / "out", silent)


@pytest.mark.parametrize("name", ["../outside", "/outside", "in/../../outside"])
def test_an_archive_that_would_write_outside_is_refused(name: str, tmp_path: Path) -> None:
    tar, pack = tmp_path / "some.tar", tmp_path / "some.zip"
    archive_of(tar, **{name: b"harm"})
    with zipfile.ZipFile(pack, "w") as file:
        file.writestr(name, "harm")
    out = tmp_path / "deep" / "out"
    out.mkdir(parents=True)
    for path in (tar, pack):
        if path == tar and name == "/outside":
            continue  # the filter makes it relative
        with pytest.raises(BadValue, match="wants to write outside its folder"):
            unpack(path, out / path.suffix, silent)
    assert [path for path in tmp_path.rglob("outside") if out not in path.parents] == []


def test_a_link_out_of_the_archive_is_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "some.tar", "w") as pack:
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, "../../secret"
        pack.addfile(link)
    with pytest.raises(BadValue, match="'link' is a link or a device"):
        unpack(tmp_path / "some.tar", tmp_path / "out", silent)


LINKS = {
    "a link within": (tarfile.SYMTYPE, "there"),
    "an absolute link": (tarfile.SYMTYPE, "/etc/passwd"),
    "a hard link out": (tarfile.LNKTYPE, "../../secret"),
    "a hard link to an absolute path": (tarfile.LNKTYPE, "/etc/passwd"),
    "a device": (tarfile.CHRTYPE, ""),
    "a disk": (tarfile.BLKTYPE, ""),
    "a pipe": (tarfile.FIFOTYPE, ""),
}


@pytest.mark.parametrize("what", LINKS)
def test_links_and_devices_are_never_unpacked(what: str, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "some.tar", "w") as pack:
        member = tarfile.TarInfo("folder/there")
        pack.addfile(member)
        member = tarfile.TarInfo("folder/strange")
        member.type, member.linkname = LINKS[what]
        pack.addfile(member)
    with pytest.raises(BadValue, match=r"some\.tar' is refused: 'folder/strange' is a link or a device; none of the"):
        unpack(tmp_path / "some.tar", tmp_path / "out", silent)
    assert [path.name for path in (tmp_path / "out").rglob("*")] == ["folder", "there"]


def test_a_link_in_a_zip_becomes_a_plain_file(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "some.zip", "w") as pack:
        link = zipfile.ZipInfo("link")
        link.create_system, link.external_attr = 3, 0o120777 << 16
        pack.writestr(link, "/etc/passwd")
    unpack(tmp_path / "some.zip", tmp_path / "out", silent)
    assert not (tmp_path / "out" / "link").is_symlink()
    assert (tmp_path / "out" / "link").read_text() == "/etc/passwd"


@pytest.mark.parametrize("name", ["C:\\harm", "C:/harm", "..\\harm", "a\\..\\..\\harm"])
def test_paths_of_another_system_are_refused_too(name: str, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "some.zip", "w") as pack:
        pack.writestr(name, "harm")
    with pytest.raises(BadValue, match="wants to write outside its folder"):
        unpack(tmp_path / "some.zip", tmp_path / "out", silent)


@pytest.mark.parametrize("name", ["", ".", "./"])
def test_a_file_without_a_name_is_refused(name: str, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "some.zip", "w") as pack:
        member = zipfile.ZipInfo("name")
        member.filename = name
        pack.writestr(member, "harm")
    with pytest.raises(BadValue, match=r"some\.zip' is refused: a file in it has no name"):
        unpack(tmp_path / "some.zip", tmp_path / "out", silent)


@pytest.mark.parametrize("suffix", ["zip", "tgz"])
def test_an_archive_that_unfolds_without_end_is_refused_by_what_it_declares(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clbench.data.unpack.SLACK_BYTES", 1_000_000)
    path = tmp_path / f"some.{suffix}"
    if suffix == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as pack:
            for number in range(8):
                pack.writestr(f"{number}", bytes(1_000_000))
    else:
        archive_of(path, **{f"{number}": bytes(1_000_000) for number in range(8)})
    with pytest.raises(BadValue, match=r"is refused: it would unfold to .* bytes more than there may be"):
        unpack(path, tmp_path / "out", silent)
    assert sum(file.stat().st_size for file in (tmp_path / "out").iterdir()) < 4_000_000


def test_an_archive_larger_than_the_disk_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda place: shutil._ntuple_diskusage(10, 9, 1))
    with pytest.raises(BadValue, match="would unfold to 1 bytes more"):
        unpack(archive_of(tmp_path / "some.tar", a=b"ab"), tmp_path / "out", silent)
