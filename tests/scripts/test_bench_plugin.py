"""The benchmark of the scheduler plug-in: it starts, its sums are right, and its results are whole."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from plugin_engine import Segment, lost
from plugin_numbers import ratio
from plugin_steps import in_child

from marsbench.errors import EngineError

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "bench_plugin.py"
RESULT = ROOT / "results" / "reference" / "plugin.json"
NAMES = ("stock", "null policies", "MARS")

needs_vllm = pytest.mark.skipif(find_spec("vllm") is None, reason="vllm is not installed")


def test_ratios_are_of_neighbours_in_time():
    """3/2, 6/3 and 5/4: the median quotient is 1.5, not the quotient 5/3 of the medians."""
    found = ratio([3.0, 6.0, 5.0], [2.0, 3.0, 4.0])
    assert found["ratio"] == 1.5
    assert 1.25 <= found["low"] <= 1.5 <= found["high"] <= 2.0
    assert ratio([2.0], [4.0]) == {"ratio": 0.5, "low": 0.5, "high": 0.5}


@pytest.mark.vllm
@needs_vllm
def test_only_what_was_measured_again_is_replaced():
    """Cells are told apart by mode, load and sessions; the other part of the file stays, what is
    no part any more does not."""
    import bench_plugin

    old = {"server": [{"mode": "sync"}], "engine": [{"mode": "sync"}], "steps": [
        {"mode": "sync", "load": "turns", "sessions": 1, "is": "old"},
        {"mode": "sync", "load": "turns", "sessions": 16, "is": "old"},
    ]}  # fmt: skip
    new = [{"mode": "sync", "load": "turns", "sessions": 16, "is": "new"}]
    found = bench_plugin.merged(old, "steps", new)
    assert found["engine"] == old["engine"]
    assert "server" not in found
    assert [cell["is"] for cell in found["steps"]] == ["old", "new"]
    assert bench_plugin.merged({}, "steps", new) == {"plugin_version": 2, "steps": new}


@pytest.mark.vllm
@needs_vllm
def test_loads_hold_what_they_promise():
    """A load's memory holds all of its sessions at their longest, or that share of them."""
    import plugin_steps

    decode, pressure = (plugin_steps.LOADS[name](64) for name in ("decode", "pressure"))
    # 1,024 + 20,001 tokens are 1,314 blocks of 16 and a part, two more are spare
    assert decode.config().num_blocks == 64 * (21_025 // 16 + 2)
    # ten turns of 64 + 256 after 8,192 tokens are 712 blocks; 64 sessions, 40 %
    assert pressure.config().num_blocks == int(0.4 * 64 * (11_392 // 16 + 2))


@pytest.mark.vllm
@needs_vllm
def test_a_few_steps(tmp_path: Path) -> None:
    """Four sessions of turns on every class: each is timed, and all turns of all end."""
    path = tmp_path / "plugin.json"
    command = ["steps", "--repeats", "2", "--steps", "80", "--running", "4", "--loads", "turns"]
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *command, "--json", str(path)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    cells = json.loads(path.read_text())["steps"]
    assert [cell["mode"] for cell in cells] == ["sync", "async"]
    for cell in cells:
        assert tuple(cell["contenders"]) == NAMES
        for row in cell["contenders"].values():
            assert len(row["runs"]) == 2
            assert min(row["runs"]) > 0
            assert row["turns"] > 0
            a_turn = row["us_per_running_turn"]["us"]
            assert a_turn == pytest.approx(row["us_per_step"] / row["running"], rel=0.2)
            assert 2 < row["scheduled_per_step"] <= 4


@pytest.mark.vllm
@needs_vllm
def test_a_few_segments(tmp_path: Path) -> None:
    """Two sessions on an engine of two layers: every scheduler makes the same tokens, each round."""
    path = tmp_path / "plugin.json"
    command = ["engine", "--repeats", "2", "--sessions", "2", "--layers", "2", "--modes", "async"]
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *command, "--json", str(path)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (cell,) = json.loads(path.read_text())["engine"]
    assert tuple(cell["tokens_per_cpu_s"]) == NAMES
    for row in cell["tokens_per_cpu_s"].values():
        assert len(row["runs"]) == 2
        assert min(row["runs"]) > 0
    # 3 turns of 48 tokens, two sessions at once: a step makes at most two tokens
    assert all(3 * 48 <= steps < 2 * 3 * 48 for steps in cell["steps"].values())
    assert min(cell["scheduler_us_per_step"].values()) > 0
    for row in cell["throughput_lost"].values():
        assert row["low"] <= row["share"] <= row["high"] < 1


def test_what_is_lost_is_what_the_scheduler_needs_more():
    """10 ms more in the scheduler of segments that take 1 s and 1.01 s: 0.01 / (1.005 + 0.01)."""
    stock = [Segment(1.0, 1.0, 0.02, 10)] * 3
    ours = [Segment(1.01, 1.01, 0.03, 10)] * 3
    assert lost(ours, stock)["share"] == pytest.approx(0.01 / 1.015)
    assert lost(stock, stock) == {"share": 0.0, "low": 0.0, "high": 0.0}


def test_a_measuring_process_that_fails_is_told_of():
    """What a task returns comes back; one that ends without an answer is an error."""
    assert in_child(lambda: 2 * 21) == 42
    with pytest.raises(EngineError, match="ended early"):
        in_child(lambda: os._exit(3))


@pytest.mark.vllm
@needs_vllm
@pytest.mark.parametrize("wrong", [["steps", "--repeats", "0"], ["steps", "--loads", "idle"], []])
def test_wrong_options_are_refused(capsys, wrong):
    """What cannot be measured is said in the usage, before anything is."""
    import bench_plugin

    with pytest.raises(SystemExit) as stopped:
        bench_plugin.options(wrong)
    assert stopped.value.code == 2
    assert "usage" in capsys.readouterr().err


def test_the_stored_result_is_whole() -> None:
    """plugin.json has every load at every size, both kinds of engine, and the machine of each."""
    found = json.loads(RESULT.read_text(encoding="utf-8"))
    steps = {(cell["mode"], cell["load"], cell["sessions"]) for cell in found["steps"]}
    assert steps == {
        (mode, load, sessions)
        for mode in ("sync", "async")
        for load in ("decode", "turns", "pressure")
        for sessions in (1, 16, 64, 256)
    }
    assert {cell["mode"] for cell in found["engine"]} == {"sync", "async"}
    for cell in (*found["steps"], *found["engine"]):
        assert cell["machine"]["vllm"]
    for cell in found["engine"]:
        assert tuple(cell["tokens_per_cpu_s"]) == NAMES
        assert set(cell["throughput_lost"]) == set(NAMES[1:])
        for row in cell["tokens_per_cpu_s"].values():
            assert len(row["runs"]) == cell["repeats"]
