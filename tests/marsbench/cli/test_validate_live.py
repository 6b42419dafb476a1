"""`marsbench validate` with a live engine: a server that times its steps as the simulator does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from threaded_server import in_a_thread

pytest.importorskip("aiohttp")

from typer.testing import CliRunner

from marsbench.cli import RunFailed, app, validate_live
from marsbench.engine.live.fake_server import Behaviour, FakeServer
from marsbench.engine.profile import load_profile
from marsbench.errors import ConfigError, EngineError


@pytest.fixture
def url():
    """A fake server with the cost of the tiny profile."""
    cost = load_profile("tiny-cpu").step_cost()
    with in_a_thread(FakeServer(Behaviour(cost=cost, num_blocks=512, block_size=128))) as address:
        yield address


@pytest.fixture
def trace(tmp_path):
    """Three sessions of different lengths."""
    path = tmp_path / "small.jsonl"
    lines = []
    for k in range(3):
        turns = [
            {
                "new_input_tokens": 400,
                "output_tokens": 20 + 30 * k,
                "tools": [{"name": "ls", "class": "shell_read", "wall_s": 0.2}],
            },
            {"new_input_tokens": 100, "output_tokens": 10, "tools": []},
        ]
        session = {"trace_version": 1, "session_id": f"s{k}", "agent": "a", "model": "m"}
        lines.append(json.dumps({**session, "turns": turns}))
    path.write_text("\n".join(lines) + "\n")
    return path


def test_simulator_and_server(url, trace, tmp_path, monkeypatch):
    """Sessions, totals and the order of two systems, as JSON and as text, and a figure."""
    monkeypatch.chdir(tmp_path)
    line = ["validate", "--engines", "sim,vllm", "-w", str(trace), "-n", "3", "--rate", "4",
            "--profile", "tiny-cpu", "-c", f"url={url}", "--tolerance", "5"]  # fmt: skip
    done = CliRunner().invoke(
        app, [*line, "-s", "vllm,concur", "--json", "--figure", "agreement.png"]
    )
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert told["order"]["pairs"] == 1
    for system in ("vllm", "concur"):
        found = told["systems"][system]
        assert found["sessions"]["both_completed"] == 3
        assert found["sessions"]["p95"] < 0.3
        totals = found["totals"]
        assert totals["sessions_completed"] == {"sim": 3.0, "vllm": 3.0, "error": 0.0}
        # 400 of 500 tokens are 3 full blocks of 128 and the output adds to them
        assert totals["kv_hit_rate"]["error"] == 0.0
    assert Path("agreement.png").stat().st_size > 10_000
    done = CliRunner().invoke(app, [*line, "--seed", "4", "--seeds", "2"])
    assert "6 sessions on both: latency differs by" in done.stdout
    assert "mean, seed 4" in done.stdout
    assert "mean, seed 5" in done.stdout


def test_engines_that_differ_too_much_fail(trace):
    """A server that is many times as slow as the profile says fails the command in one line, after
    the numbers; a tolerance that is wide enough lets it pass."""
    slow = Behaviour(ttft_s=0.3, itl_s=0.05, num_blocks=512, block_size=128)
    with in_a_thread(FakeServer(slow)) as url:
        line = ["validate", "--engines", "sim,vllm", "-w", str(trace), "-n", "1", "--rate", "4",
                "--profile", "tiny-cpu", "-c", f"url={url}"]  # fmt: skip
        done = CliRunner().invoke(app, line)
        assert "mean_latency_s" in done.stdout
        with pytest.raises(
            RunFailed, match=r"vllm on vllm is \+.*beyond --tolerance 0.25"
        ) as caught:
            raise done.exception
        assert caught.value.code == 1
        assert CliRunner().invoke(app, [*line, "--tolerance", "100"]).exit_code == 0


def test_a_misfit_is_said_before_anything_is_played(trace, monkeypatch):
    """Flags with which the server would not start are refused before the simulator plays its part."""
    monkeypatch.setattr(validate_live, "_play", lambda *_: pytest.fail("it played"))
    flags = ("-c", "num_blocks=8")
    done = CliRunner().invoke(
        app,
        ["validate", "--engines", "sim,vllm", "-w", str(trace), "--profile", "tiny-cpu", *flags],
    )
    with pytest.raises(EngineError, match="max_model_len=32768 does not fit 8 KV blocks"):
        raise done.exception


@pytest.mark.parametrize("more", [("--figure", "x.png"), ("--seeds", "2"), ("--tolerance", "1")])
def test_figures_and_seeds_are_of_live_engines(trace, more):
    """Engines that can be compared step by step need neither."""
    done = CliRunner().invoke(app, ["validate", "-w", str(trace), *more])
    with pytest.raises(ConfigError, match=f"{more[0]}: .*sim,vllm"):
        raise done.exception
