"""What the name of a tool is worth: samples, deadlines, folds, and scores on made-up calls."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from study import (
    DEADLINES_S,
    KEYS,
    Calls,
    Study,
    WeightedDurations,
    avoidable_wait,
    columns,
    compact,
    folds,
    rental_cost,
    samples,
)
from words import percent, verdict

from mars_impl.estimate import GapModel
from marsbench.core import Session, ToolCall, Turn
from marsbench.errors import ConfigError, TraceError

SCRIPT = Path(__file__).resolve().parents[2] / "results/reference/tool_names/study.py"


def even(*seconds: float) -> WeightedDurations:
    return WeightedDurations(np.array(seconds), np.full(len(seconds), 1 / len(seconds)))


def made_up(informative: bool, num_sessions: int = 40, per_session: int = 20) -> Calls:
    """Half of the calls take about 0.1 s, half about 10 s; names tell which, or nothing."""
    rng = np.random.default_rng(1)
    num = num_sessions * per_session
    long = rng.integers(0, 2, num)
    name = long if informative else rng.integers(0, 2, num)
    seconds = np.where(long, 10.0, 0.1) * np.exp(0.2 * rng.standard_normal(num))
    session = np.repeat(np.arange(num_sessions), per_session)
    return Calls(seconds, session, name, np.zeros(num, dtype=np.int64))


def test_sample_of_what_remains():
    """After 2 s, calls of 1, 2, 4 and 8 s leave 2 and 6 s; if none ran longer, all remain."""
    left = even(1, 2, 4, 8).after(2)
    assert left.seconds.tolist() == [2, 6]
    assert left.mean_s() == 4
    assert left.median_s() == 2
    assert even(1, 2).after(5).seconds.tolist() == [1, 2]


def test_deadline_is_the_cheapest():
    """Three calls of 1 s and one of 100 s, b = 5 s: hold for 1 s, (3 + 1 + 5) / 4 a call; 50 s
    spread evenly would never repay holding, so that all is dropped at once."""
    choices = np.array([0.0, 0.5, 1.0, 5.0, np.inf])
    assert even(1, 1, 1, 100).deadline_s(5, choices) == 1
    assert even(50, 51, 52).deadline_s(5, choices) == 0
    assert even(1, 2, 3).deadline_s(5, choices) == 5
    assert even(1, 2, 3).deadline_s(5, np.array([0.0, np.inf])) == np.inf


@pytest.mark.parametrize("break_even_s", [0.5, 5.0, 50.0])
def test_deadline_agrees_with_trying_each(break_even_s):
    """The sums give the deadline that trying every one on every call gives."""
    rng = np.random.default_rng(3)
    sample = even(*np.sort(np.exp(rng.standard_normal(200) * 2)))
    tried = [rental_cost(sample.seconds, at, break_even_s).mean() for at in DEADLINES_S]
    assert sample.deadline_s(break_even_s, DEADLINES_S) == DEADLINES_S[int(np.argmin(tried))]


def test_rental_cost_by_hand():
    """Back in time costs the wait; late costs the deadline and b."""
    costs = rental_cost(np.array([1.0, 3.0, 9.0]), 3.0, 5.0)
    assert costs.tolist() == [1, 3, 3 + 5]


def test_shrinkage_is_that_of_mars():
    """The expected log duration of a tool's sample is the mean of MARS's gap model, but for the
    two pseudo-samples its global mean starts with."""
    rng = np.random.default_rng(0)
    name = rng.integers(0, 3, 3000)
    seconds = np.exp(rng.standard_normal(3000) + name)
    model = GapModel(30.0)
    for each, took in zip(name, seconds, strict=True):
        model.observe(str(each), took)
    fitted = samples(seconds, name, 4, 30.0)
    for index in range(3):
        ours = fitted[index].mean_log()
        assert ours == pytest.approx(np.log(model.expected_s(str(index))), abs=2e-3)
    assert fitted[3].mean_log() == pytest.approx(np.log(seconds).mean())  # never seen: all calls


def test_without_shrinkage_only_own_calls_count():
    """A prior of 0 leaves a tool's own calls; 2 calls against 2 pseudo-samples weigh half."""
    seconds, key = np.array([1.0, 3.0, 10.0, 20.0]), np.array([0, 0, 1, 1])
    assert samples(seconds, key, 2, 0.0)[0].mean_s() == 2
    assert samples(seconds, key, 2, 2.0)[0].mean_s() == pytest.approx((2 + 8.5) / 2)


def test_a_session_is_in_one_fold():
    """Folds number sessions, so no session is on both sides, and differ in size by one at most."""
    fold = folds(11, 4, np.random.default_rng(0))
    assert sorted(np.bincount(fold)) == [2, 3, 3, 3]


def test_predictions_come_from_other_sessions():
    """Where every session has a duration of its own, no call is predicted by its own duration."""
    session = np.repeat(np.arange(8), 5)
    zeros = np.zeros(40, dtype=np.int64)
    calls = Calls(2.0**session, session, zeros, zeros)
    study = Study(calls, 8, 0)
    total = calls.seconds.sum()
    expected = (total - 5 * calls.seconds) / 35  # the mean of the other seven sessions
    assert study.predict(KEYS[0], WeightedDurations.mean_s) == pytest.approx(expected)


def test_names_that_tell_everything():
    """Names that tell short from long explain nearly all variance, order calls and find deadlines."""
    study = Study(made_up(informative=True), 5, 0)
    scores = study.prediction(0.0)["predictors"]["name"]
    assert scores["variance_explained"][1] > 0.95
    assert scores["log_error_change"][2] < -0.8
    # Of the avoidable wait, a half of all pairs (short meets long) has 10 s / 2, a quarter (long
    # meets long) 10 s x 0.2 x 1.13 / 2: names remove the former, 5 / (5 + 0.56) = 0.90.
    assert study.dispatch()["name"][0] == pytest.approx(0.9, abs=0.02)
    policies = study.retention(1.0)["policies"]
    # Drop the long at once and hold the short: hardly any regret.
    assert policies["name: deadline"]["regret_s"][0] < 0.01
    assert policies["name: deadline"]["regret_change"][2] < 0
    # ... while one deadline for all pays its length on each long call.
    assert policies["no name: deadline"]["regret_s"][0] > 0.05


def test_names_that_tell_nothing():
    """Names at random explain nothing, and the intervals include no gain."""
    study = Study(made_up(informative=False), 5, 0)
    scores = study.prediction(0.0)["predictors"]["name, shrunk"]
    assert scores["variance_explained"][0] < 0.01
    assert study.dispatch()["no name"] == [0.0, 0.0, 0.0]
    assert abs(study.dispatch()["name, shrunk"][0]) < 0.1
    assert study.retention(5.0)["policies"]["name, shrunk: deadline"]["regret_change"][2] >= 0


def test_elapsed_time_tells_long_from_short():
    """After 1 s only long calls are left: the elapsed time says so without names."""
    study = Study(made_up(informative=True), 5, 0)
    scores = study.prediction(1.0)["predictors"]
    assert scores["elapsed"]["log_error"][0] < 0.3
    assert scores["no name"]["log_error"][0] > 3 * scores["elapsed"]["log_error"][0]


def test_avoidable_wait_by_hand():
    """The second waits for the first: 8 before 1 waits 7 too long; a tie is a coin's 3.5."""
    one, other = np.array([8.0, 8.0, 8.0]), np.array([1.0, 1.0, 1.0])
    waits = avoidable_wait(one, other, np.array([1.0, 2.0, 5.0]), np.array([2.0, 1.0, 5.0]))
    assert waits.tolist() == [7, 0, 3.5]


def test_columns_of_sessions():
    """Sub-agents' calls belong to their parent, calls without a duration are counted and left out,
    sessions without calls get no number."""

    def session(name, *walls, children=()):
        tools = tuple(ToolCall("Bash", "test", wall_s) for wall_s in walls)
        return Session(name, (Turn(10, 1, tools=tools, children=children),))

    calls, left_out = columns([session("a"), session("b", 1, 0, children=(session("c", 2e-4),))])
    assert calls.seconds.tolist() == [1, 1e-3]
    assert calls.session.tolist() == [0, 0]
    assert left_out == 1
    with pytest.raises(TraceError, match="no tool call has a duration"):
        columns([session("a")])


def test_too_many_folds():
    """More folds than sessions is a user's mistake."""
    calls = made_up(informative=True, num_sessions=3)
    with pytest.raises(ConfigError, match="4 folds of 3 sessions"):
        Study(calls, 4, 0)


def test_words():
    """A change helps or hurts only if its interval says so and it is 1 % or more."""
    assert verdict([-0.1, -0.2, -0.01]) == "helps"
    assert verdict([0.1, 0.01, 0.2]) == "hurts"
    assert verdict([-0.1, -0.2, 0.01]) == "makes no difference"
    assert verdict([-0.005, -0.006, -0.004]) == "makes no difference"
    assert percent([0.123, 0.1, 0.2]) == "12 % [10, 20]"
    assert verdict([]) == "has nothing to gain"
    assert percent([]) == "–"
    assert percent([-0.001, 0.0, 0.0], sign=True) == "+0 %"


def test_json_keeps_an_interval_on_a_line():
    """Compacting changes lines, not values."""
    results = [{"a": [1.0, -2.5, 3e-05], "b": {"c": [], "d": "[ x ]"}}]
    assert json.loads(compact(results)) == results
    assert '"a": [1.0, -2.5, 3e-05]' in compact(results)


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True, check=False
    )


def test_run_on_a_trace(tmp_path):
    """A trace with recorded durations is studied and named by file name and checksum only."""
    lines = [
        {
            "trace_version": 1,
            "session_id": f"secret-{number}",
            "turns": [
                {
                    "new_input_tokens": 10,
                    "output_tokens": 1,
                    "tools": [{"name": "hush", "class": "read", "wall_s": 0.1 + turn + number / 9}],
                }
                for turn in range(10)
            ],
        }
        for number in range(6)
    ]
    path = tmp_path / "some.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    done = run("--trace", str(path), "--folds", "3")
    assert done.returncode == 0, done.stderr
    assert "6 sessions, 60 calls, 1 names, 1 classes" in done.stdout
    assert "SHA-256" in done.stdout
    assert "secret" not in done.stdout
    assert "hush" not in done.stdout


def test_durations_that_were_made_up_are_refused(tmp_path):
    """A trace whose importer derives durations is refused, with the reason in one line."""
    lines = [{"trace_version": 1, "session_id": "a",
              "x_provenance": {"tools.wall_s": "assumed: median of the class"},
              "turns": [{"new_input_tokens": 10, "output_tokens": 1}]}]  # fmt: skip
    path = tmp_path / "assumed.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    done = run("--trace", str(path))
    assert done.returncode == 2
    assert "not measured (assumed: median of the class)" in done.stderr
    assert len(done.stderr.splitlines()) == 1
