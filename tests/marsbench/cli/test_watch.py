"""``marsbench watch``: what it prints, what it writes, and how it ends."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile

import pytest

pytest.importorskip("zmq")

import zmq

from marsbench.cli import main
from marsbench.cli.watch import line
from marsbench.experiment.stream.messages import RunBegin, RunEnd, encode

STATUS = {
    "run_id": "r", "cells_over": 1, "num_cells": 4, "cells_running": 3, "cell": 1,
    "workload": "swe-bench", "system": "mars", "load": 0.9, "rate_per_s": 0.01, "seed": 2,
    "time_s": 512.34, "sessions": 80, "sessions_arrived": 46, "sessions_over": 34,
    "tools_running": 5, "kv_used": 0.783, "events": 120345,
}  # fmt: skip


@pytest.fixture
def address():
    with tempfile.TemporaryDirectory() as folder:
        yield f"ipc://{folder}/s"


def watching(address, *options) -> subprocess.Popen[str]:
    code = "import sys; from marsbench.cli import main; main(sys.argv[1:])"
    command = [sys.executable, "-c", code, "watch", address, *map(str, options)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_line():
    """Cells over, the cell at work, its time, sessions, tools, KV cache, events, other cells."""
    assert line(STATUS) == (
        "1/4 cells; mars on swe-bench load 0.9 seed 2: 512.3 s, 34/80 sessions over, 12 at work, "
        "5 tools, KV 78%, 120,345 events; other cells at work: 2"
    )
    at_rate = line({**STATUS, "load": None, "cells_running": 1})
    assert "mars on swe-bench 0.01 sessions/s seed 2:" in at_rate
    assert "other cells" not in at_rate
    assert line({"cells_over": 0, "num_cells": 4}) == "0/4 cells"


def test_run_and_watch(tmp_path, address, capsys, monkeypatch):
    """Two commands side by side: what watch writes is the run's events.parquet."""
    monkeypatch.chdir(tmp_path)
    turns = [{"new_input_tokens": 900, "output_tokens": 20, "tools": [
        {"name": "bash", "class": "script", "wall_s": 0.5}]}] * 3  # fmt: skip
    session = {"trace_version": 1, "turns": turns}
    lines = [json.dumps({**session, "session_id": f"s{k}"}) + "\n" for k in range(6)]
    (tmp_path / "small.jsonl").write_text("".join(lines))
    watch = watching(address, "--records", tmp_path / "seen.parquet", "--json")
    arguments = (
        "run -w small.jsonl -s vllm -s mars --rate 0.5 --split all -n 6 --out out --no-cache -q "
        f"--stream {address} --stream-wait 1"
    )
    with pytest.raises(SystemExit) as stopped:
        main(arguments.split())
    assert stopped.value.code == 0
    printed, talk = watch.communicate(timeout=30)
    assert watch.returncode == 0, talk
    assert "events of 2 cells" in talk
    assert json.loads(printed.splitlines()[-1])["cells_over"] == 2
    own = (tmp_path / "out" / "events.parquet").read_bytes()
    assert (tmp_path / "seen.parquet").read_bytes() == own


@pytest.mark.parametrize(("last", "said"), [
    (RunEnd("r", complete=False), "not all of its cells are finished"),
    (None, "went away before its end"),
])  # fmt: skip
def test_a_run_that_did_not_finish(address, last, said):
    """Status 1 and one line when the run says that cells are missing, or says nothing any more."""
    context = zmq.Context()
    socket = context.socket(zmq.XPUB)
    socket.setsockopt(zmq.RCVTIMEO, 20_000)
    socket.bind(address)
    watch = watching(address)
    socket.recv()
    socket.send_multipart(encode(RunBegin("r", 1, (0,))))
    if last is not None:
        socket.send_multipart(encode(last))
    context.destroy(linger=1000)
    _, talk = watch.communicate(timeout=30)
    assert watch.returncode == 1
    assert said in talk
    assert len(talk.splitlines()) == 1


def test_silence_is_said(address):
    """Where nothing is published watch says so after a few seconds, and goes on waiting."""
    watch = watching(address)
    assert watch.stderr is not None
    said = watch.stderr.readline()
    watch.kill()
    watch.communicate()
    assert "nothing is published at" in said
    assert f"--stream {address}" in said


def test_waiting_for_observers_of_nothing(capsys):
    """--stream-wait without --stream would never begin: refused."""
    with pytest.raises(SystemExit) as stopped:
        main(["run", "--stream-wait", "1"])
    assert stopped.value.code == 2
    assert "--stream-wait needs --stream" in capsys.readouterr().err


def test_a_folder_that_is_not_there(tmp_path, address, capsys):
    """--records into no folder is said at once."""
    with pytest.raises(SystemExit) as stopped:
        main(["watch", address, "--records", str(tmp_path / "no" / "x.parquet")])
    assert stopped.value.code == 2
    assert "no such folder" in capsys.readouterr().err
