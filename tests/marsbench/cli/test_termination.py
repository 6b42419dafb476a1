"""Runs that are interrupted, killed, or find the disk full keep what is finished."""

from __future__ import annotations

import json
import resource
import signal

import pytest
from command_line import marsbench, session_line, until, write_trace


def test_termination_before_the_first_cell(trace, tmp_path):
    """SIGTERM while a run prepares ends it with status 143 and one line."""
    arguments = ["run", "-w", "swe-bench", "-s", "vllm-tuned", "-o", "out", "--no-cache"]
    run = marsbench(*arguments, cwd=tmp_path)
    until(run, "... capacity")
    run.terminate()
    _, err = run.communicate(timeout=300)
    assert run.returncode == 143, err
    assert err.splitlines()[-1] == "marsbench: terminated before the first cell was finished"


def test_interrupt_before_the_first_cell(trace, tmp_path):
    """Ctrl-C while a run prepares: status 130 and one line; the folder can be used again at once."""
    arguments = ["run", "-w", "swe-bench", "-s", "vllm-tuned", "-o", "out", "--no-cache"]
    run = marsbench(*arguments, cwd=tmp_path)
    until(run, "... capacity")
    run.send_signal(signal.SIGINT)
    _, err = run.communicate(timeout=300)
    assert run.returncode == 130, err
    assert err.splitlines()[-1] == "marsbench: interrupted"
    again = marsbench("run", "-w", trace, "--rate", "1", "-n", "2", "-o", "out", cwd=tmp_path)
    _, err = again.communicate(timeout=300)
    assert again.returncode == 0, err


@pytest.mark.parametrize(
    ("number", "status", "word", "before"),
    [
        (signal.SIGINT, 130, "interrupted", signal.SIG_DFL),
        (signal.SIGTERM, 143, "terminated", signal.SIG_DFL),
        (signal.SIGTERM, 143, "terminated", signal.SIG_IGN),
    ],
    ids=["interrupt", "terminate", "terminate in the background"],
)
def test_interrupt_keeps_finished_cells(trace, tmp_path, number, status, word, before):
    """Ctrl-C or SIGTERM during the cells: a status of its own, one line on what is kept, and a
    summary of the finished cells. A shell starts background jobs with Ctrl-C ignored (``before``).
    """
    mine = signal.signal(signal.SIGINT, before)
    arguments = ["run", "--rate", "1", "--split", "all", "-w", trace, "-o", "out"]
    arguments += ["--sessions", "300", "--seeds", "10"]
    try:
        run = marsbench(*arguments, cwd=tmp_path)
    finally:
        signal.signal(signal.SIGINT, mine)
    until(run, "[2/10]")
    run.send_signal(number)
    out, err = run.communicate(timeout=300)
    assert run.returncode == status, err
    assert err.splitlines()[-1].startswith(f"marsbench: {word}: ")
    assert " of 10 cells are kept in out" in err.splitlines()[-1]
    assert "latency s" in out
    kept = len(list((tmp_path / "out" / "cells").glob("*/cell.json")))
    assert 2 <= kept < 10
    assert len(json.loads((tmp_path / "out/summary.json").read_text())["cells"]) == kept


def test_killed_run_is_readable_and_resumes(trace, tmp_path, cli):
    """After SIGKILL the finished cells can be reported, and --resume runs only the others."""
    arguments = ["run", "--rate", "1", "--split", "all", "-w", trace, "-o", "out"]
    arguments += ["--sessions", "300", "--seeds", "12"]
    run = marsbench(*arguments, cwd=tmp_path)
    until(run, "[2/12]")
    run.kill()
    run.communicate()
    code, out, _ = cli("report", "out", "--no-figures", "--json")
    assert code == 0
    code, out, err = cli(*arguments, "--resume", "--json")
    assert code == 0
    assert len(json.loads(out)["cells"]) == 12
    assert 1 <= sum(row.startswith("[") for row in err.splitlines()) <= 10


def test_full_disk_keeps_finished_cells(trace, tmp_path):
    """When files cannot grow any further the run ends with one line and status 1; the cell that
    still fitted is kept.
    """
    first, later, _ = session_line(0)["turns"]
    turns = [first, *[later] * 300]
    long = [session_line(k, turns=turns) for k in range(4)]
    write_trace(tmp_path / "long.jsonl", long)

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))

    arguments = ["run", "--rate", "0.01", "--split", "all", "--sessions", "4", "--out", "out"]
    arguments += ["--no-cache", "-w", "small.jsonl", "-w", "long.jsonl"]
    run = marsbench(*arguments, cwd=tmp_path, preexec_fn=limit)
    _, err = run.communicate(timeout=300)
    assert run.returncode == 1, err
    assert "File too large" in err
    assert "1 of 2 cells are kept in out" in err.splitlines()[-1]
    assert "Traceback" not in err
