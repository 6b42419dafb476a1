"""`marsbench calibrate` writes a profile that runs use, and says how good the fit is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from threaded_server import in_a_thread

pytest.importorskip("aiohttp")

from typer.testing import CliRunner

from marsbench.cli import app
from marsbench.engine.cost import StepCost
from marsbench.engine.live.fake_server import Behaviour, FakeServer
from marsbench.engine.profile import load_profile
from marsbench.errors import ConfigError

COST = StepCost.from_coefficients(
    c_tok=20_000_000, c_pair=0, weights=[0], m_ctx=1_000_000, o_step=4_000_000_000,
    o_seq=300_000_000,
)  # fmt: skip


@pytest.fixture
def url():
    """A fake server with a known cost and 200 blocks of 16."""
    with in_a_thread(
        FakeServer(Behaviour(cost=COST, num_blocks=200, max_num_batched_tokens=512))
    ) as address:
        yield address


def calibrate(*more: str):
    return CliRunner().invoke(app, ["calibrate", "--profile", "tiny-cpu", *more])


def test_profile_of_a_running_engine(url, tmp_path, monkeypatch):
    """The profile holds the fitted cost, the server's own sizes and where its numbers come from; a
    figure lies beside it, and an existing profile is not replaced unasked."""
    monkeypatch.chdir(tmp_path)
    more = ("--out", "mine.yaml", "-c", f"url={url}", "-c", "max_num_batched_tokens=512")
    more += ("-c", "max_num_seqs=4", "--most-tokens", "600", "--repeats", "1", "--json", "--quiet")
    done = calibrate(*more)
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    profile = load_profile("mine.yaml")
    assert profile.name == "mine"
    assert profile.num_kv_tokens == 200 * 16
    assert (profile.engine.block_size, profile.engine.max_num_batched_tokens) == (16, 512)
    cost = profile.step_cost()
    assert told["coefficients"] == cost.to_dict()
    for step in ((512, 512 * 256, 512, 1), (4, 4 * 300, 4 * 300, 4)):
        assert cost.step_ps(*step) == pytest.approx(COST.step_ps(*step), rel=0.15)
    assert told["error"]["all"]["p50"] < 0.1
    turn = profile.turn_cost()
    assert turn._asdict() == told["turn"]
    assert 0 < turn.delay_ps(600) < 50_000_000_000, "the way there and back, and nothing of a step"
    assert url in profile.sources["coefficients"]
    assert Path("mine.png").stat().st_size > 10_000
    with pytest.raises(ConfigError, match="--overwrite"):
        raise calibrate(*more).exception


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--out", "x.json"), "ends in .yaml"),
        (("--engine", "sim"), "unknown live engine 'sim'"),
        (("-c", "num_blocs=3"), "did you mean 'num_blocks'"),
        (("-c", "url=localhost:8000"), "does not begin with http"),
    ],
)
def test_wrong_options(more, words, tmp_path, monkeypatch):
    """What is wrong is named before anything is measured."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=words):
        raise calibrate(*more).exception
