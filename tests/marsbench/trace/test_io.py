"""Trace files: any compression by content, damage told exactly, writes all or nothing."""

from __future__ import annotations

import gzip
import stat
from contextlib import suppress

import pytest
import zstandard

from marsbench.errors import ResultsError, TraceError
from marsbench.trace import io


def packed(data, kind):
    if kind == "gzip":
        return gzip.compress(data)
    return zstandard.ZstdCompressor().compress(data) if kind == "zstd" else data


@pytest.mark.parametrize("kind", ["plain", "gzip", "zstd"])
def test_compression_is_told_by_content(tmp_path, kind):
    """Lines are the same in all three packings, whatever the file is called."""
    path = tmp_path / "trace.txt"
    path.write_bytes(packed(b"\xef\xbb\xbfone\r\n\n  two\nthree", kind))
    assert list(io.read_lines(path)) == [(1, b"one"), (3, b"two"), (4, b"three")]
    assert io.head(path, 6) == b"\xef\xbb\xbfone"


@pytest.mark.parametrize("kind", ["gzip", "zstd"])
def test_joined_streams_are_one_file(tmp_path, kind):
    """cat a.gz b.gz reads as a then b."""
    path = tmp_path / "t"
    path.write_bytes(packed(b"a\nb\n", kind) + packed(b"c\n", kind))
    assert [line for _, line in io.read_lines(path)] == [b"a", b"b", b"c"]


@pytest.mark.parametrize("kind", ["gzip", "zstd"])
def test_cut_file_says_how_many_lines_were_readable(tmp_path, kind):
    """A truncated file gives its whole lines, then an error with their number."""
    import random

    noise = random.Random(0)
    lines = [f"{noise.getrandbits(4000):x}".encode() for _ in range(500)]
    data = packed(b"\n".join(lines), kind)
    path = tmp_path / "t.jsonl"
    path.write_bytes(data[: len(data) // 2])
    read = []
    with pytest.raises(TraceError) as caught:
        read.extend(line for _, line in io.read_lines(path))
    assert 0 < len(read) < 500
    assert read == lines[: len(read)]
    assert f"{kind} data end too early" in str(caught.value)
    assert f"the {len(read)} lines before were readable" in str(caught.value)
    assert caught.value.line == len(read) + 1


def test_damaged_gzip_is_an_error(tmp_path):
    """A file whose checksum does not fit its content is refused."""
    data = bytearray(gzip.compress(bytes(range(256)) * 2000))
    data[-8] ^= 0xFF  # the CRC-32 stands in the last 8 bytes
    path = tmp_path / "t.gz"
    path.write_bytes(data)
    with pytest.raises(TraceError, match="gzip data are damaged"):
        list(io.read_lines(path))


def test_a_file_is_never_loaded_whole(tmp_path):
    """The first line of 200 MB of zeros in 200 kB of gzip comes without the rest."""
    import tracemalloc

    path = tmp_path / "big.gz"
    with gzip.open(path, "wb", compresslevel=1) as stream:
        stream.write(b"first\n")
        for _ in range(200):
            stream.write(b"0" * 999_999 + b"\n")
    tracemalloc.start()
    assert next(io.read_lines(path)) == (1, b"first")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 60_000_000


def test_unreadable_files_name_the_reason(tmp_path):
    """A missing file and a directory are one-line errors."""
    with pytest.raises(TraceError, match="none: cannot read it: No such file"):
        list(io.read_lines(tmp_path / "none"))
    with pytest.raises(TraceError, match="cannot read it: Is a directory"):
        list(io.read_lines(tmp_path))


def test_ids_are_unique_in_a_file(write, session):
    """A repeated id, also of a sub-agent, is reported with its line."""
    path = write([session("a"), session("b"), session("a")])
    with pytest.raises(
        TraceError, match=r"trace.jsonl:3: session_id: 'a' stands on an earlier line"
    ):
        list(io.read_sessions(path))


@pytest.mark.parametrize("name", ["t.jsonl", "t.jsonl.gz", "t.jsonl.zst"])
def test_writing_is_deterministic_and_round_trips(write, session, name):
    """The same sessions give the same bytes, packed as the name says."""
    sessions = [session("a"), session("b", arrival_s=2.0)]
    path = write(sessions, name)
    first = path.read_bytes()
    magic = {"t.jsonl": b"{", "t.jsonl.gz": b"\x1f\x8b", "t.jsonl.zst": b"\x28\xb5\x2f\xfd"}
    assert first.startswith(magic[name])
    assert write(sessions, name).read_bytes() == first
    assert list(io.read_sessions(path)) == sessions


def test_a_failed_write_leaves_the_old_file(tmp_path):
    """An error midway keeps what was there and leaves no scratch file."""
    path = tmp_path / "t.jsonl"
    path.write_text("old")
    with suppress(TraceError), io.open_atomic(path) as stream:
        stream.write(b"new")
        raise TraceError("stop")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["t.jsonl"]


def test_unwritable_places_are_one_line(tmp_path):
    """A missing folder and a full disk give ResultsError with the reason."""
    with pytest.raises(ResultsError, match="No such file or directory"):
        io.open_atomic(tmp_path / "no" / "t.jsonl").__enter__()
    with pytest.raises(ResultsError, match="No space left"), io.open_atomic(_full()) as stream:
        stream.write(b"x" * 100_000)
    assert stat.S_ISCHR(_full().stat().st_mode)


def _full():
    from pathlib import Path

    path = Path("/dev/full")
    if not path.exists():
        pytest.skip("no /dev/full here")
    return path


def test_directory_sample_lists_files_in_order(tmp_path):
    """Importers see a directory as the sorted relative names of its files."""
    for name in ("b/2.json", "a.json", "b/1.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}")
    assert io.sample(tmp_path).names == ("a.json", "b/1.json", "b/2.json")
    before = io.sha256(tmp_path)
    (tmp_path / "b/1.json").rename(tmp_path / "b/3.json")
    assert io.sha256(tmp_path) != before
