"""Timelines for Perfetto keep the rules of the Trace Event Format, and show what happened."""

from __future__ import annotations

import io
import json
from itertools import groupby
from pathlib import Path

import pytest

import marsbench
from marsbench.cli import main
from marsbench.errors import ConfigError
from marsbench.export import perfetto

ROOT = Path(__file__).resolve().parents[3]
REQUIRED = {"X": {"name", "cat", "ts", "dur"}, "C": {"name", "ts"}, "M": {"name"}}
METADATA = {"process_name": "name", "process_sort_index": "sort_index", "thread_name": "name"}


def check(trace: dict) -> list[dict]:
    """The rules of the format that viewers rely on; the events."""
    events = trace["traceEvents"]
    assert trace["displayTimeUnit"] in {"ms", "ns"}
    named = {(e["pid"], e["tid"]) for e in events if e["name"] == "thread_name"}
    processes = {e["pid"] for e in events if e["name"] == "process_name"}
    for event in events:
        assert REQUIRED[event["ph"]] | {"ph", "pid", "tid", "args"} == set(event)
        assert type(event["pid"]) is type(event["tid"]) is int
        assert event["pid"] in processes
        assert event["pid"] > 0  # Perfetto takes process 0 for the kernel's idle task
        if event["ph"] == "M":
            assert set(event["args"]) == {METADATA[event["name"]]}
        else:
            assert event["ts"] >= 0
            assert round(event["ts"], 3) == event["ts"]
        if event["ph"] == "X":
            assert event["dur"] >= 0
            assert (event["pid"], event["tid"]) in named
        if event["ph"] == "C":
            assert all(value >= 0 for value in event["args"].values())
    slices = [event for event in events if event["ph"] == "X"]
    track = lambda e: (e["pid"], e["tid"])  # noqa: E731
    for _, group in groupby(sorted(slices, key=track), track):
        nested(list(group))
    return events


def nested(slices: list[dict]) -> None:
    """On one track a slice lies inside the one around it, or after it: nothing crosses."""
    around: list[int] = []
    for event in sorted(slices, key=lambda e: (e["ts"], -e["dur"])):
        start = round(1000 * event["ts"])
        end = start + round(1000 * event["dur"])
        while around and around[-1] <= start:
            around.pop()
        assert not around or end <= around[-1], event
        around.append(end)


def exported(run) -> dict:
    stream = io.BytesIO()
    number = perfetto.write(run, stream)
    trace = json.loads(stream.getvalue())
    assert len(trace["traceEvents"]) == number
    return trace


def test_every_cell_of_a_reference_run_keeps_the_rules():
    """Cells of three systems with parallel tools and preemptions, from the repository."""
    run = marsbench.load(ROOT / "results/reference/small")
    for cell in run.cells["cell"].tolist()[-3:]:
        events = check(exported(run.only(cell=cell)))
        turns = run.only(cell=cell).turns
        assert sum(event.get("cat") == "turn" for event in events) == len(turns)


def test_a_timeline_says_what_happened(folder):
    """Phases follow each other, preemptions are inside them, parallel tools have tracks of their own,
    and what was cut off lasts until the end of the run.
    """
    trace = exported(marsbench.load(folder).only(cell=0))
    events = check(trace)
    assert trace["otherData"]["system"] == "mars"
    assert trace["otherData"]["run_id"] == "r-1"
    names = {e["pid"]: e["args"]["name"] for e in events if e["name"] == "process_name"}
    shown = [
        (names[e["pid"]], e["tid"], e["name"], e["ts"] / 1e6, (e["ts"] + e["dur"]) / 1e6)
        for e in events
        if e["ph"] == "X"
    ]
    assert [row[1:] for row in shown if row[0] == "one"] == [
        (1, "session", 1.0, 11.0),
        (1, "turn 0", 1.0, 4.5),
        (1, "backlog", 1.0, 2.0),
        (1, "queue", 2.0, 2.5),
        (1, "prefill", 2.5, 3.5),
        (1, "decode", 3.5, 4.5),
        (1, "turn 1", 6.5, 11.0),
        (1, "backlog", 6.5, 6.75),
        (1, "queue", 6.75, 7.0),
        (1, "prefill", 7.0, 9.0),
        (1, "preempted", 7.5, 8.0),
        (1, "decode", 9.0, 11.0),
        (2, "read", 4.5, 5.5),
        (3, "tool queue", 4.5, 5.0),
        (3, "bash", 5.0, 6.0),
    ]
    assert ("cut", 1, "queue", 10.5, 12.0) in shown
    assert [row[2:] for row in shown if row[0] == "large"] == [
        ("session", 2.0, 2.0),
        ("turn 0", 2.0, 2.0),
    ]
    counters = [(e["name"], e["ts"], e["args"]) for e in events if e["ph"] == "C"]
    assert ("KV blocks", 5e6, {"running": 30, "retained": 10, "cached": 20, "free": 40}) in counters
    assert ("tool calls", 5e6, {"running": 2, "queued": 1}) in counters


def test_a_timeline_shows_one_cell(folder, tmp_path, capsys, monkeypatch):
    """Several cells are refused with the way to choose; the command writes the chosen one, compressed."""
    with pytest.raises(ConfigError, match=r"2 cells are left.*--cell N \(0 to 1\)"):
        exported(marsbench.load(folder))
    out = tmp_path / "t.json.gz"
    with pytest.raises(SystemExit) as stopped:
        main(["export", str(folder), "--seed", "4", "--out", str(out)])
    assert not stopped.value.code
    assert "ui.perfetto.dev" in capsys.readouterr().err
    import gzip

    check(json.loads(gzip.decompress(out.read_bytes())))


@pytest.mark.parametrize(("options", "said"), [
    (["--format", "chrome"], "expected one of perfetto, otlp"),
    (["--endpoint", "http://x"], "--endpoint, --header and --start are for --format otlp"),
    (["--system", "vllm"], "has no cell with system='vllm'"),
    (["--format", "otlp", "--endpoint", "x", "--out", "y"], "the spans go to one of them"),
    (["--format", "otlp", "--endpoint", "127.0.0.1:4318"], "expected the address of a collector"),
    (["--format", "otlp", "--start", "noon"], "--start noon: expected a time"),
    (["--format", "otlp", "--header", "x"], "expected NAME=VALUE"),
])  # fmt: skip
def test_mistakes_are_one_line(folder, capsys, options, said):
    """Wrong formats, addresses and choices end with status 2 and one line."""
    with pytest.raises(SystemExit) as stopped:
        main(["export", str(folder), *options])
    assert stopped.value.code == 2
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1
