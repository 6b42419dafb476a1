"""The benchmark of the scheduler plug-in: it starts, its sums are right, and its results are whole."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "scripts" / "bench_plugin.py"
RESULT = ROOT / "results" / "reference" / "plugin.json"
NAMES = ("stock", "null policies", "MARS")

needs_vllm = pytest.mark.skipif(find_spec("vllm") is None, reason="vllm is not installed")


@pytest.fixture(scope="module")
def script():
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("bench_plugin", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["bench_plugin"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["bench_plugin"]


@pytest.mark.vllm
@needs_vllm
def test_ratios_are_of_neighbours_in_time(script):
    """3/2, 6/3 and 5/4: the median quotient is 1.5, not the quotient 5/3 of the medians."""
    found = script.ratio([3.0, 6.0, 5.0], [2.0, 3.0, 4.0])
    assert found["ratio"] == 1.5
    assert 1.25 <= found["low"] <= 1.5 <= found["high"] <= 2.0
    assert script.ratio([2.0], [4.0]) == {"ratio": 0.5, "low": 0.5, "high": 0.5}


@pytest.mark.vllm
@needs_vllm
def test_only_what_was_measured_again_is_replaced(script):
    """Cells are told apart by mode, load and sessions; the other part of the file stays."""
    old = {"server": [{"mode": "sync"}], "steps": [
        {"mode": "sync", "load": "turns", "sessions": 1, "is": "old"},
        {"mode": "sync", "load": "turns", "sessions": 16, "is": "old"},
    ]}  # fmt: skip
    new = [{"mode": "sync", "load": "turns", "sessions": 16, "is": "new"}]
    found = script.merged(old, "steps", new)
    assert found["server"] == old["server"]
    assert [cell["is"] for cell in found["steps"]] == ["old", "new"]
    assert script.merged({}, "steps", new) == {"plugin_version": 1, "steps": new}


@pytest.mark.vllm
@needs_vllm
def test_loads_hold_what_they_promise(script):
    """A load's memory holds all of its sessions at their longest, or that share of them."""
    decode, pressure = (script.LOADS[name](64) for name in ("decode", "pressure"))
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
            assert 2 < row["scheduled_per_step"] <= 4


@pytest.mark.vllm
@needs_vllm
@pytest.mark.parametrize("wrong", [["steps", "--repeats", "0"], ["steps", "--loads", "idle"], []])
def test_wrong_options_are_refused(script, capsys, wrong):
    """What cannot be measured is said in the usage, before anything is."""
    with pytest.raises(SystemExit) as stopped:
        script.options(wrong)
    assert stopped.value.code == 2
    assert "usage" in capsys.readouterr().err


def test_the_stored_result_is_whole() -> None:
    """plugin.json has every load at every size, both kinds of server, and the machine of each."""
    found = json.loads(RESULT.read_text(encoding="utf-8"))
    steps = {(cell["mode"], cell["load"], cell["sessions"]) for cell in found["steps"]}
    assert steps == {
        (mode, load, sessions)
        for mode in ("sync", "async")
        for load in ("decode", "turns", "pressure")
        for sessions in (1, 16, 64, 256)
    }
    assert {cell["mode"] for cell in found["server"]} == {"sync", "async"}
    for cell in (*found["steps"], *found["server"]):
        assert cell["machine"]["vllm"]
    for cell in found["server"]:
        assert tuple(cell["tokens_per_s"]) == NAMES
        for row in cell["tokens_per_s"].values():
            assert len(row["runs"]) == cell["repeats"]
