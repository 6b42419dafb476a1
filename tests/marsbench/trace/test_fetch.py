"""Fetching public traces from a mirror on this machine: resume, check, and say what went wrong."""

from __future__ import annotations

import hashlib
import io as std_io
import json
import tarfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from marsbench.errors import ConfigError, TraceError
from marsbench.trace import io
from marsbench.trace.catalogue import CATALOGUE, Archive, HubDataset, PublicSet, Release, find_set
from marsbench.trace.fetch import download, fetch

DATA = bytes(range(256)) * 8192  # 2 MiB


class Mirror:
    """What the test server holds and how it misbehaves."""

    def __init__(self):
        self.data = DATA
        self.etag = '"v1"'
        self.break_after = []  # bytes to send before hanging up, one entry a request
        self.ranges = True
        self.requests = []  # the Range header of each request
        self.url = ""


@pytest.fixture
def mirror():
    state = Mirror()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked = self.headers.get("Range")
            state.requests.append(asked)
            if self.path != "/file.jsonl":
                self.send_error(404)
                return
            start = 0
            fresh = self.headers.get("If-Range") in (None, state.etag)
            if asked and state.ranges and fresh:
                start = int(asked.removeprefix("bytes=").removesuffix("-"))
                if start >= len(state.data):
                    self.send_response(416)
                    self.send_header("Content-Range", f"bytes */{len(state.data)}")
                    self.end_headers()
                    return
                self.send_response(206)
                end = len(state.data) - 1
                self.send_header("Content-Range", f"bytes {start}-{end}/{len(state.data)}")
            else:
                self.send_response(200)
            body = state.data[start:]
            self.send_header("Content-Length", str(len(body)))
            self.send_header("ETag", state.etag)
            self.end_headers()
            limit = state.break_after.pop(0) if state.break_after else len(body)
            self.wfile.write(body[:limit])

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    state.url = f"http://127.0.0.1:{server.server_port}/file.jsonl"
    yield state
    server.shutdown()
    server.server_close()
    thread.join()


def entry(mirror, sha256=None):
    return PublicSet("set", "a set", "MIT", "2 MiB", "canonical", Release(mirror.url), sha256)


def test_downloads_and_checks(mirror, tmp_path):
    """A fetched file is checked against its published hash and not fetched again."""
    seen = []
    known = hashlib.sha256(DATA).hexdigest()
    found = fetch(entry(mirror, known), tmp_path / "t", on_progress=lambda *a: seen.append(a))
    assert found.path.read_bytes() == DATA
    assert (found.sha256, found.checked) == (known, "published")
    assert seen[-1] == (len(DATA), len(DATA))
    assert fetch(entry(mirror, known), tmp_path / "t") == found
    assert mirror.requests == [None]


def test_a_broken_connection_is_taken_up_where_it_broke(mirror, tmp_path):
    """Each piece asks for the bytes that are missing; the file is whole."""
    mirror.break_after = [1_000_000, 500_000]
    download(mirror.url, tmp_path / "f")
    assert mirror.requests == [None, "bytes=1000000-", "bytes=1500000-"]
    assert (tmp_path / "f").read_bytes() == DATA
    assert [p.name for p in tmp_path.iterdir()] == ["f"]


def test_a_second_run_resumes(mirror, tmp_path):
    """When no more bytes come the part is kept, and the next run goes on from it."""
    mirror.break_after = [300_000, 0]
    with pytest.raises(TraceError, match=r"broke after 300,000 of 2,097,152 bytes; run the same"):
        download(mirror.url, tmp_path / "f")
    assert (tmp_path / "f.part").stat().st_size == 300_000
    download(mirror.url, tmp_path / "f")
    assert mirror.requests[-1] == "bytes=300000-"
    assert (tmp_path / "f").read_bytes() == DATA


def test_a_changed_file_is_not_spliced(mirror, tmp_path):
    """If the file changed between two runs it comes whole again."""
    mirror.break_after = [300_000, 0]
    with pytest.raises(TraceError):
        download(mirror.url, tmp_path / "f")
    mirror.data, mirror.etag = DATA[::-1], '"v2"'
    download(mirror.url, tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == DATA[::-1]


def test_a_server_without_ranges_cannot_loop(mirror, tmp_path):
    """A server that always breaks at the same place ends in an error, not in a circle."""
    mirror.ranges = False
    mirror.break_after = [100_000] * 10
    with pytest.raises(TraceError, match="broke after 100,000"):
        download(mirror.url, tmp_path / "f")
    assert len(mirror.requests) == 2


@pytest.mark.parametrize("extra", [0, 10])
def test_a_part_as_long_as_the_file_or_longer(mirror, tmp_path, extra):
    """A complete part is finished without a transfer; an overlong one is thrown away."""
    (tmp_path / "f.part").write_bytes(DATA + b"x" * extra)
    download(mirror.url, tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == DATA


def test_a_wrong_hash_is_refused(mirror, tmp_path):
    """A file that is not the published one is set aside, and a later fetch starts anew."""
    wrong = "0" * 64
    with pytest.raises(TraceError, match=r"SHA-256 is [0-9a-f]{64}, wanted 0{64} \(published\)"):
        fetch(entry(mirror, wrong), tmp_path)
    assert not (tmp_path / "file.jsonl").exists()
    assert (tmp_path / "file.jsonl.wrong").exists()
    assert fetch(entry(mirror), tmp_path).path.exists()


def test_an_unknown_hash_is_recorded_and_compared(mirror, tmp_path):
    """Without a published hash the first fetch is the reference for later ones."""
    assert fetch(entry(mirror), tmp_path).checked == "nothing yet"
    ledger = json.loads((tmp_path / "fetched.json").read_text())
    assert ledger["set"] == {"sha256": hashlib.sha256(DATA).hexdigest(), "source": mirror.url}
    assert fetch(entry(mirror), tmp_path).checked == "first fetch"
    (tmp_path / "file.jsonl").unlink()
    mirror.data = b"other"
    with pytest.raises(TraceError, match=r"wanted .* \(first fetch\)"):
        fetch(entry(mirror), tmp_path)


def test_errors_are_one_line(mirror, tmp_path):
    """A missing file, no server and a wrong URL each say what to do."""
    with pytest.raises(TraceError, match="the server answers 404"):
        download(mirror.url + "x", tmp_path / "f")
    with pytest.raises(
        TraceError, match=r"cannot reach it \(.*\); are you offline\? --mirror takes"
    ):
        download("http://127.0.0.1:9/f", tmp_path / "f")
    with pytest.raises(ConfigError, match=r"'ftp://x/f' is no http\(s\) URL"):
        download("ftp://x/f", tmp_path / "f")


def test_a_local_copy_serves_as_mirror(mirror, tmp_path):
    """--mirror FILE copies and checks it without a connection."""
    copy = tmp_path / "copy"
    copy.write_bytes(DATA)
    known = hashlib.sha256(DATA).hexdigest()
    assert fetch(entry(mirror, known), tmp_path / "t", mirror=str(copy)).sha256 == known
    assert mirror.requests == []


def test_archives_are_unpacked_below_their_folder(mirror, tmp_path):
    """Only files below the wanted folder arrive, without the repository's top folder."""
    buffer = std_io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name in (
            "repo-1/traces/a.json",
            "repo-1/traces/sub/b.json",
            "repo-1/traces2/c",
            "repo-1/d",
        ):
            member = tarfile.TarInfo(name)
            member.size = 2
            archive.addfile(member, std_io.BytesIO(b"{}"))
    mirror.data = buffer.getvalue()
    made = PublicSet("set", "", "MIT", "", "weka", Archive(mirror.url, "traces"))
    found = fetch(made, tmp_path / "t")
    assert io.sample(found.path).names == ("a.json", "sub/b.json")
    other = PublicSet("other", "", "MIT", "", "weka", Archive(mirror.url, "none"))
    with pytest.raises(TraceError, match="has no folder 'none'"):
        fetch(other, tmp_path / "t")
    mirror.data = b"no archive"
    broken = PublicSet("broken", "", "MIT", "", "weka", Archive(mirror.url, "traces"))
    with pytest.raises(TraceError, match="damaged archive, now removed"):
        fetch(broken, tmp_path / "t")


def test_hub_sets_come_from_a_local_dataset_directory(tmp_path):
    """A dataset folder becomes JSON lines with each row's own keys (no nulls)."""
    folder = tmp_path / "data"
    folder.mkdir()
    made = [{"id": "a", "requests": [{"t": 1, "out": 5}]}, {"id": "b", "requests": [{"t": 2}]}]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in made))
    hub = PublicSet("hub", "", "MIT", "", "weka", HubDataset("someone/something", "main"))
    found = fetch(hub, tmp_path / "t", mirror=str(folder))
    assert found.path.name == "hub.jsonl.zst"
    assert [json.loads(line) for _, line in io.read_lines(found.path)] == made
    with pytest.raises(TraceError, match=r"cannot load it \(.*offline\? --mirror takes"):
        fetch(hub, tmp_path / "u", mirror=str(tmp_path / "nowhere"))


def test_catalogue_entries_are_complete():
    """Each set has a licence, a registered importer and a well-formed hash if any."""
    from marsbench.trace.source import find_importer

    for name, listed in CATALOGUE.items():
        assert listed.name == name
        assert listed.licence
        assert find_importer(listed.importer).name == listed.importer
        assert listed.sha256 is None or len(bytes.fromhex(listed.sha256)) == 32
    with pytest.raises(ConfigError, match="did you mean 'tracelab'"):
        find_set("traclab")
