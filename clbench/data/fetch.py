"""Fetching a published file: downloads that go on where they stopped, and checksums."""

from __future__ import annotations

import hashlib
import http.client
import urllib.error
import urllib.request
from pathlib import Path

from clbench.data.cache import Report
from clbench.data.contents import Archive, DataSet
from clbench.errors import BadValue, NotAvailable, StoreError
from clbench.files import explain, set_aside

BLOCK = 1 << 20
TIMEOUT_SECONDS = 30.0
"""For which a server may be silent."""


def fetch(archive: Archive, target: Path, data: DataSet, report: Report) -> Path:
    """Download `archive` to `target`, going on with what an earlier call left, and verify it; returns `target`.

    NotAvailable, saying which file to put where, if it cannot be had; BadValue if another file came, which is set
    aside. What an interrupted download left stays beside `target`, its name ending in `.part`.
    """
    place = f"put it at '{target}', or name its place with 'clbench data prepare {data.name} --from PATH'"
    if archive.url is None:
        if not data.home:
            raise NotAvailable(
                f"{archive.file} is published nowhere: it is a part of a set, of your own making, in that set's format "
                f"({data.title}); {place}."
            )
        raise NotAvailable(f"{archive.file} of {data.title} is fetched by hand, from {data.home}: {place}.")
    part = target.with_name(f"{target.name}.part")
    try:
        if not (part.is_file() and part.stat().st_size == archive.bytes):
            _transfer(archive, part, report)
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        raise NotAvailable(
            f"{archive.file} could not be downloaded from {archive.url} ({reason}); run the command again with the "
            f"internet at hand, it goes on where it stopped. Or {place}."
        ) from error
    try:
        verify(part, archive, data, report)
    except BadValue as error:
        raise BadValue(f"{error} It was set aside as '{set_aside(part)}'.") from error
    part.rename(target)
    _mark(part).unlink(missing_ok=True)
    return target


def verify(path: Path, archive: Archive, data: DataSet, report: Report) -> str:
    """Compare the checksum of the file at `path` with the published one; returns it in words. BadValue on another."""
    algorithm, published = archive.checksum or ("sha256", None)
    value = _digest(path, algorithm, report)
    if published is None:
        return f"{algorithm} {value}, not verified: none is published"
    if value != published:
        raise BadValue(
            f"'{path}' has the {algorithm} {value}, the published {archive.file} has {published}: it is damaged or "
            f"another file; fetch it again from {archive.url}.{data.hint}"
        )
    return f"{algorithm} {value}"


def verify_member(path: Path, md5: str, data: DataSet) -> None:
    """Compare a file of an unpacked archive with its published md5; BadValue on another."""
    value = _digest(path, "md5", lambda what, done, total: None)
    if value != md5:
        raise BadValue(f"'{path.name}' has the md5 {value}, the published one has {md5}.{data.hint}")


def _digest(path: Path, algorithm: str, report: Report) -> str:
    digest = hashlib.new(algorithm, usedforsecurity=False)
    done = 0
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            while block := file.read(BLOCK):
                digest.update(block)
                done += len(block)
                report(f"checking {path.name}", done, size)
    except OSError as error:
        raise BadValue(f"'{path}' cannot be read: {error.strerror or error}.") from error
    return digest.hexdigest()


def _mark(part: Path) -> Path:
    """Holds what the server called the version of the file, so that two versions are never joined."""
    return part.with_name(f"{part.name}.version")


def _transfer(archive: Archive, part: Path, report: Report) -> None:
    """Bring the rest of the file, or all of it where the server cannot go on; OSError where the line breaks."""
    mark = _mark(part)
    version = mark.read_text(encoding="utf-8") if mark.is_file() else ""
    have = part.stat().st_size if version and part.is_file() else 0
    headers = {"Range": f"bytes={have}-", "If-Range": version} if have else {}
    request = urllib.request.Request(str(archive.url), headers={"User-Agent": "clbench", **headers})
    with _opened(request, part) as response:
        goes_on = have and response.status == http.HTTPStatus.PARTIAL_CONTENT
        have = have if goes_on else 0
        mark.write_text(_version(response.headers), encoding="utf-8")
        length = response.headers.get("Content-Length")
        total = None if length is None else have + int(length)
        with part.open("ab" if goes_on else "wb") as file:
            while block := response.read(BLOCK):
                try:
                    file.write(block)
                except OSError as error:
                    raise StoreError(explain(error, part)) from error
                have += len(block)
                report(f"downloading {archive.file}", have, total)
    if total is not None and have != total:
        raise ConnectionError(f"the connection ended after {have} of {total} bytes")


def _opened(request: urllib.request.Request, part: Path) -> http.client.HTTPResponse:
    """The answer; where the part is no beginning of the server's file, to a request without it."""
    try:
        return urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS)  # type: ignore[no-any-return]
    except urllib.error.HTTPError as error:
        error.close()
        if error.code != http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            raise
        part.unlink()
        plain = urllib.request.Request(request.full_url, headers={"User-Agent": "clbench"})
        return urllib.request.urlopen(plain, timeout=TIMEOUT_SECONDS)  # type: ignore[no-any-return]


def _version(headers: http.client.HTTPMessage) -> str:
    """A strong validator of RFC 9110, section 13.1.5, or nothing."""
    tag = headers.get("ETag") or ""
    return tag if tag and not tag.startswith("W/") else headers.get("Last-Modified") or ""
