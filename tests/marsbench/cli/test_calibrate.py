"""`marsbench calibrate` writes a profile that runs use, and says how good the fit is."""

from __future__ import annotations

import datetime as dt
import json
from pathlib import Path

import pytest
from threaded_server import in_a_thread

pytest.importorskip("aiohttp")

from typer.testing import CliRunner

from marsbench.cli import app
from marsbench.core import to_s
from marsbench.engine.cost import StepCost, TurnCost
from marsbench.engine.fit import Fit
from marsbench.engine.live.calibrated import fit_warning, profile_of, started_model
from marsbench.engine.live.fake_server import Behaviour, FakeServer
from marsbench.engine.live.options import LiveOptions
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
    # how well a known cost comes back is tested in virtual time; here the server's sleeps end late
    (full,) = [x for x in told["samples"] if x["steps"] == 1 and x["first_step"][0] == 512]
    assert full["measured_s"] >= to_s(COST.step_ps(*full["first_step"]))
    assert full["predicted_s"] == pytest.approx(
        to_s(cost.step_ps(*full["first_step"])) + told["delay_s"]
    )
    assert 0 <= told["error"]["all"]["p50"] <= told["error"]["all"]["p95"]
    turn = profile.turn_cost()
    assert turn._asdict() == told["turn"]
    assert turn.delay_ps(600) > 0, "the way there and back"
    assert url in profile.sources["coefficients"]
    assert Path("mine.png").stat().st_size > 10_000
    with pytest.raises(ConfigError, match="--overwrite"):
        raise calibrate(*more).exception


def test_the_model_that_is_started_is_the_profile_s():
    """A profile of the tiny model that is started with 24 layers is one of 24 layers; of another model
    nothing is measured; at an address nobody knows better than the profile."""
    tiny = load_profile("tiny-cpu")
    assert started_model(tiny, LiveOptions(layers=24)).layers == 24
    assert started_model(tiny, LiveOptions()).layers == 2
    assert started_model(tiny, LiveOptions(url="http://h:1")).layers == 2
    large = load_profile("h100-nvl/gpt-oss-120b")
    with pytest.raises(
        ConfigError, match=r"calibrate: the profile's model is .* engine.params.model"
    ):
        started_model(large, LiveOptions())


def test_a_fit_that_misses_and_a_busy_machine_are_told():
    """Errors of 12 % (median) and 52 % (95th percentile) are a warning, those of an idle machine none;
    the profile keeps how busy others were."""
    found = Fit(COST, 0, 0.0, (1.0,) * 3, (0.12, 0.12, 0.565))
    assert "12% (median) and 52% (95th percentile)" in fit_warning(found)
    assert fit_warning(Fit(COST, 0, 0.0, (1.0,) * 3, (0.01, 0.05, 0.2))) is None
    tiny = load_profile("tiny-cpu")
    content = profile_of(
        tiny, tiny.engine_config(), found, [], turn=TurnCost(1, 1), model=tiny.model, others=0.31,
        name="x", measured_on="http://h:1", date=dt.date(2026, 1, 2),
    )  # fmt: skip
    assert (
        "Other programs used 31% of the machine's cores meanwhile."
        in (content["sources"]["coefficients"])
    )


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--out", "x.json"), "ends in .yaml"),
        (("--engine", "sim"), "has modelled step times; calibrate a real server"),
        (("-c", "num_blocs=3"), "did you mean 'num_blocks'"),
        (("-c", "url=localhost:8000"), "does not begin with http"),
    ],
)
def test_wrong_options(more, words, tmp_path, monkeypatch):
    """What is wrong is named before anything is measured."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=words):
        raise calibrate(*more).exception
