"""A kind of server and a driver each need one place of their own and one line in a table."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

pytest.importorskip("aiohttp")

from marsbench.cli import app
from marsbench.drivers import DRIVERS
from marsbench.engine import ENGINES
from marsbench.engine.kind import ServerEngine

SESSION = {
    "trace_version": 1, "agent": "a", "model": "m",
    "turns": [
        {"new_input_tokens": 300, "output_tokens": 6,
         "tools": [{"name": "pytest", "class": "test", "wall_s": 0.05, "cpu_s": 0.02}]},
        {"new_input_tokens": 100, "output_tokens": 4, "tools": []},
    ],
}  # fmt: skip


def run(tmp_path, *more):
    """`marsbench run` of four sessions; the folder's environment and only cell."""
    tmp_path.mkdir(exist_ok=True)
    trace = tmp_path / "small.jsonl"
    trace.write_text(
        "".join(json.dumps({**SESSION, "session_id": f"s{k}"}) + "\n" for k in range(4))
    )
    out = tmp_path / "out"
    done = CliRunner().invoke(
        app,
        ["run", "-w", str(trace), "--profile", "tiny-cpu", "-n", "4", "--rate", "20", "--out",
         str(out), "--quiet", "--no-cache", *more],
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    (cell,) = json.loads((out / "summary.json").read_text())["cells"]
    return json.loads((out / "environment.json").read_text()), cell


def test_a_kind_of_server(tmp_path, monkeypatch):
    """One class and one line: marsbench starts the server, runs the cell on it, stops it, and
    measures ideals in the simulator."""
    monkeypatch.setitem(ENGINES, "toy", ServerEngine("a toy", server="toys.ToyServer"))
    environment, cell = run(tmp_path, "--engine", "toy", "-c", "engine.params.warm_up_turns=0")
    assert (cell["engine"], cell["sessions"]["completed"]) == ("toy", 4)
    assert cell["live"]["turns"] == 8
    assert cell["metrics"]["session_slowdown"]["mean"] > 0
    assert "fake_server" in environment["server_flags"]["server-0"]


def test_a_driver(tmp_path, monkeypatch):
    """One class and one line: what makes sessions act stands around any engine, with parameters."""
    monkeypatch.setitem(DRIVERS, "toy", "toys.ToyDriver")
    _, plain = run(tmp_path / "plain")
    environment, cell = run(tmp_path / "toy", "--driver", "toy", "-c", "driver.params.slower=3")
    assert environment["server_flags"] == {"driver": "toy"}
    assert cell["metrics"]["makespan_s"] > 1.5 * plain["metrics"]["makespan_s"]


def test_a_driver_that_there_is_not(tmp_path):
    """One line with the closest name, before anything is computed."""
    done = CliRunner().invoke(app, ["run", "--driver", "replai", "--out", str(tmp_path / "x")])
    assert "did you mean 'replay'" in str(done.exception)
    assert not (tmp_path / "x").exists()
