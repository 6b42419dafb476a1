"""Downloads public traces: resumable, checked against their SHA-256, one line when offline."""

from __future__ import annotations

import http.client
import json
import re
import shutil
import tarfile
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from marsbench.errors import ConfigError, ResultsError, TraceError
from marsbench.extras import require
from marsbench.trace import io
from marsbench.trace.catalogue import Archive, HubDataset, PublicSet, Release

TIMEOUT_S = 30.0
LEDGER = "fetched.json"
"""Beside the fetched sets: checksum and source of each."""
Progress = Callable[[int, int | None], None]
"""Called with bytes so far and the total, None if the server does not say."""
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Fetched:
    """A set on this machine."""

    path: Path
    sha256: str
    checked: str
    """What the checksum was compared with: "published", "first fetch" or "nothing yet"."""


class _Reply(NamedTuple):
    start: int
    """Offset of the first byte that comes."""
    total: int | None
    validator: str
    """ETag or date by which the server knows this version of the file; may be empty."""
    body: Iterator[bytes]


def fetch(
    entry: PublicSet, dest: Path, *, mirror: str | None = None, on_progress: Progress | None = None
) -> Fetched:
    """Get a public set into ``dest`` unless it is there already, and check it.

    ``mirror`` replaces where it comes from: a URL that ends in the file, a local copy of the file,
    or for a Hugging Face set a local dataset directory. Raises TraceError or ResultsError.
    """
    with _writing(dest):
        dest.mkdir(parents=True, exist_ok=True)
    if isinstance(entry.source, HubDataset):
        path = dest / f"{entry.name}.jsonl.zst"
        if not path.exists():
            _fetch_rows(entry.source, path, mirror)
    elif isinstance(entry.source, Archive):
        path = dest / entry.name
        if not path.exists():
            packed = dest / f"{entry.name}.tar.gz"
            _get(mirror or entry.source.url, packed, on_progress)
            _unpack(packed, entry.source, path)
    else:
        path = dest / entry.source.file_name
        if not path.exists():
            _get(mirror or entry.source.url, path, on_progress)
    return _check(entry, path, dest / LEDGER)


def download(url: str, target: Path, on_progress: Progress | None = None) -> None:
    """Get a URL into a file, going on where an earlier try stopped (``NAME.part``).

    A broken connection is taken up again as long as bytes come; then TraceError.
    """
    if urlsplit(url).scheme not in {"http", "https"}:
        raise ConfigError(f"{url!r} is no http(s) URL and no file; give --mirror one of both")
    part = target.with_name(target.name + ".part")
    tag = target.with_name(target.name + ".part.tag")
    while True:
        have = part.stat().st_size if part.exists() else 0
        known = tag.read_text(encoding="utf-8") if have and tag.exists() else ""
        reply = _request(url, have, known)
        if reply is None:  # what we hold does not fit what the server holds
            part.unlink(missing_ok=True)
            continue
        size = _receive(reply, part, tag, on_progress)
        if reply.total is None or size >= reply.total:
            break
        if size <= have:
            problem = f"the connection broke after {size:,} of {reply.total:,} bytes"
            raise TraceError(f"{problem}; run the same command again to go on", path=url)
    with _writing(target):
        part.replace(target)
        tag.unlink(missing_ok=True)


def _receive(reply: _Reply, part: Path, tag: Path, on_progress: Progress | None) -> int:
    with _writing(part):
        tag.write_text(reply.validator, encoding="utf-8")
        size = reply.start
        with part.open("r+b" if size else "wb") as stream:
            stream.seek(size)
            stream.truncate()
            for chunk in reply.body:
                stream.write(chunk)
                size += len(chunk)
                if on_progress is not None:
                    on_progress(size, reply.total)
    return size


def _request(url: str, have: int, known: str) -> _Reply | None:
    headers = {"User-Agent": "marsbench", "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
        if known:
            headers["If-Range"] = known  # a changed file comes whole instead of spliced
    request = urllib.request.Request(url, headers=headers)  # noqa: S310  (scheme checked above)
    try:
        answer = urllib.request.urlopen(request, timeout=TIMEOUT_S)  # noqa: S310
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and have:
            total = _total(error.headers.get("Content-Range", ""))
            return _Reply(have, have, known, iter(())) if total == have else None
        raise TraceError(f"the server answers {error.code} {error.reason}", path=url) from error
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        problem = f"cannot reach it ({reason}); are you offline? --mirror takes a copy"
        raise TraceError(problem, path=url) from error
    validator = answer.headers.get("ETag") or answer.headers.get("Last-Modified") or ""
    validator = "" if validator.startswith("W/") else validator  # weak tags may not resume
    if answer.status == http.HTTPStatus.PARTIAL_CONTENT:
        total = _total(answer.headers.get("Content-Range", ""))
        return _Reply(have, total, validator, _body(answer, url, total))
    length = answer.headers.get("Content-Length")
    total = int(length) if length else None
    return _Reply(0, total, validator, _body(answer, url, total))


def _body(answer: Any, url: str, total: int | None) -> Iterator[bytes]:
    """What arrives until the end or until the connection breaks; the caller compares lengths."""
    with answer:
        while True:
            try:
                chunk = answer.read(_CHUNK_BYTES)
            except (OSError, http.client.HTTPException) as error:
                if total is None:
                    problem = "the connection broke; run the same command again to go on"
                    raise TraceError(problem, path=url) from error
                return
            if not chunk:
                return
            yield chunk


def _total(content_range: str) -> int | None:
    match = re.fullmatch(r"bytes (?:\d+-\d+|\*)/(\d+)", content_range)
    return int(match[1]) if match else None


def _get(place: str, target: Path, on_progress: Progress | None) -> None:
    local = Path(place)
    if not local.is_file():
        download(place, target, on_progress)
        return
    with _writing(target):
        scratch = target.with_name(target.name + ".part")
        shutil.copyfile(local, scratch)
        scratch.replace(target)


def _unpack(packed: Path, source: Archive, path: Path) -> None:
    """Files below the wanted folder of an archive whose top folder is the repository."""
    scratch = path.with_name(path.name + ".unpacking")
    wanted = f"{source.folder}/"
    with _writing(path):
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir()
        try:
            with tarfile.open(packed, "r:gz") as archive:
                for member in archive:
                    inside = member.name.partition("/")[2]
                    if member.isfile() and inside.startswith(wanted):
                        member.name = inside.removeprefix(wanted)
                        archive.extract(member, scratch, filter="data")
        except (tarfile.TarError, EOFError) as error:
            packed.unlink()
            raise TraceError(f"damaged archive, now removed: {error}", path=str(packed)) from error
        if not any(scratch.iterdir()):
            shutil.rmtree(scratch)
            raise TraceError(f"has no folder {source.folder!r}; wrong file?", path=str(packed))
        scratch.replace(path)
        packed.unlink()


def _fetch_rows(source: HubDataset, path: Path, mirror: str | None) -> None:
    """A dataset split as JSON lines, from the hub (cached and resumed by ``datasets``) or a folder."""
    require("datasets", f"fetching {source.repo}")
    import datasets
    from huggingface_hub.utils import logging as hub_logging

    hub_logging.set_verbosity_error()  # its retries would bury the one line that matters
    place = mirror or source.repo
    try:
        if mirror and (Path(mirror) / "state.json").exists():
            rows = datasets.load_from_disk(mirror)
        else:
            revision = None if mirror else source.revision
            rows = datasets.load_dataset(place, split=source.split, revision=revision)
    except (OSError, ValueError, RuntimeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        problem = f"cannot load it ({reason}); offline? --mirror takes a local dataset directory"
        raise TraceError(problem, path=place) from error
    with io.open_atomic(path) as stream:
        for row in rows:
            stream.write(json.dumps(_without_nulls(row), default=str).encode() + b"\n")


def _without_nulls(value: Any) -> Any:
    """A row as its source had it: a table fills what one row lacks with nulls."""
    if isinstance(value, dict):
        return {k: _without_nulls(v) for k, v in value.items() if v is not None}
    if isinstance(value, list):
        return [_without_nulls(item) for item in value]
    return value


def _check(entry: PublicSet, path: Path, ledger_path: Path) -> Fetched:
    found = io.sha256(path)
    try:
        ledger = json.loads(ledger_path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        ledger = {}
    except (OSError, ValueError) as error:
        raise ResultsError(f"{ledger_path}: cannot read it ({error}); remove it") from error
    recorded = ledger.get(entry.name, {}).get("sha256")
    wanted = entry.sha256 or recorded
    checked = "published" if entry.sha256 else "first fetch" if recorded else "nothing yet"
    if wanted not in {None, found}:
        kept = path.with_name(path.name + ".wrong")
        with _writing(path):
            _remove(kept)
            path.replace(kept)
        problem = f"SHA-256 is {found}, wanted {wanted} ({checked}); kept as {kept.name}"
        raise TraceError(f"{problem}, fetch again or ask its publisher", path=str(path))
    if recorded != found:
        ledger[entry.name] = {"sha256": found, "source": _place(entry.source)}
        with io.open_atomic(ledger_path) as stream:
            stream.write(json.dumps(ledger, indent=1, sort_keys=True).encode() + b"\n")
    return Fetched(path, found, checked)


def _place(source: Release | Archive | HubDataset) -> str:
    return f"{source.repo}@{source.revision}" if isinstance(source, HubDataset) else source.url


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise ResultsError(f"{path}: cannot write it: {reason}; choose another --out") from error
