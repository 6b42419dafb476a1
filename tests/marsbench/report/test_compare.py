"""Paired comparisons: ratios worked out by hand, intervals that cover, words that are right."""

from __future__ import annotations

import json

import numpy as np
import pytest

from marsbench.cli import compare as cli
from marsbench.errors import ConfigError
from marsbench.report import compare
from marsbench.report.data import load_runs


@pytest.fixture(scope="module")
def run(make_run):
    factors = {"vllm": 4.0, "mars": 1.0, "twin": 4.0}
    return make_run(factors, loads=(0.9,), seeds=(0, 1, 2), num_sessions=30)


def headline(found, system):
    return next(
        entry for entry in found if (entry.system, entry.statistic) == (system, compare.HEADLINE)
    )


def test_ratio_is_of_the_means_over_the_same_sessions(run):
    """Ratio = baseline mean ÷ system mean over all pairs; above 1 is better."""
    data = load_runs([run])
    entry = headline(compare.compare_systems(data, "vllm"), "mars")
    means = data.sessions().groupby("system")["latency_s"].mean()
    assert entry.ratio == pytest.approx(means["vllm"] / means["mars"])
    assert entry.low < entry.ratio < entry.high
    assert entry.pairs == 90
    assert entry.seeds == 3
    assert entry.significant
    assert entry.sentence().startswith("mars is ")
    assert "faster in mean session latency than vllm at load 0.9" in entry.sentence()


def test_slower_is_said_as_slower(run):
    """Below 1 the sentence inverts ratio and interval."""
    entry = headline(compare.compare_systems(load_runs([run]), "mars"), "vllm")
    assert entry.ratio < 1
    expected = compare._times(1 / entry.ratio, 1 / entry.high, 1 / entry.low)
    assert entry.sentence() == (
        f"vllm is {expected} slower in mean session latency than mars at load 0.9"
    )


def test_equal_systems_show_no_difference(run):
    """An A/A comparison gives exactly 1 and says that no difference is shown."""
    found = compare.compare_systems(load_runs([run]), "vllm")
    entry = headline(found, "twin")
    assert (entry.ratio, entry.low, entry.high) == (1.0, 1.0, 1.0)
    assert not entry.significant
    assert "no difference shown" in entry.sentence()
    assert any("include 1" in note for note in compare.warnings_of(found))


def test_same_seed_same_interval(run):
    """The bootstrap is seeded: the same data give the same interval."""
    data = load_runs([run])
    first, second = (compare.compare_systems(data, "vllm") for _ in range(2))
    assert first == second
    other = compare.compare_systems(data, "vllm", seed=1)
    assert headline(other, "mars").low != headline(first, "mars").low


def test_seeds_are_resampled_from_three_on():
    """With 3 seeds of 2 pairs, a row draws whole seeds; with 2 seeds each keeps its own share."""
    rng = np.random.default_rng(0)
    two = compare._picks(np.array([2, 3]), 50, rng)
    assert two.shape == (50, 5)
    assert (two[:, :2] < 2).all()
    assert (two[:, 2:] >= 2).all()
    three = compare._picks(np.array([2, 2, 2]), 200, rng)
    assert three.shape == (200, 6)
    seeds = three.reshape(200, 3, 2) // 2
    assert (seeds[:, :, 0] == seeds[:, :, 1]).all()
    assert any(len(set(row)) < 3 for row in seeds[:, :, 0].tolist())


def test_intervals_cover_the_true_ratio():
    """Of 100 samples whose true ratio of means is 2, about 95 intervals contain it."""
    rng = np.random.default_rng(7)
    mean = compare.STATISTICS[0]
    hits = 0
    for _ in range(100):
        ours = rng.exponential(10.0, 120)
        theirs = 2 * ours * rng.lognormal(-0.02, 0.2, 120)  # lognormal mean: exp(-0.02 + 0.02) = 1
        draws = compare._bootstrap(np.stack([ours, theirs]), np.array([120]), [mean], rng)[0]
        low, high = compare._interval(compare._ratio(mean, *draws))
        hits += low <= 2.0 <= high
    assert 88 <= hits <= 100


def test_failed_sessions_leave_the_latency_pairs(run):
    """A session that failed under one side is in no latency pair, and the reader is told."""
    data = load_runs([run])
    frame = data.sessions()
    failed = (frame["system"] == "mars") & (frame["session_id"] == "s0")
    frame.loc[failed, ["latency_s", "slowdown"]] = np.nan
    frame["met"] = (frame["latency_s"] <= 3 * frame["ideal_s"]).astype(float)
    place, rows = next(compare._places(frame))
    pairs = compare._pair(rows, "mars", "vllm")
    found = list(compare._statistics(place, "mars", "vllm", pairs, 0))
    assert (found[0].pairs, found[0].unpaired) == (87, 3)
    assert (found[-1].statistic, found[-1].pairs) == ("slo_attainment.3", 90)
    assert any("failed under one side" in note for note in compare.warnings_of(found))


def test_no_success_on_one_side_is_not_a_number():
    """A ratio to zero is not reported as infinite."""
    values = np.array([[1.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    draws = compare._ratio(compare.STATISTICS[-1], values[0], values[1])
    assert all(np.isnan(compare._interval(draws)))


def test_two_runs_compare_the_systems_they_share(run, make_run):
    """The second run's systems are measured against the first run's."""
    faster = make_run({"vllm": 2.0}, loads=(0.9,), seeds=(0, 1, 2), num_sessions=30, run_id="r2")
    found = compare.compare_runs(load_runs([run, faster]))
    assert {(entry.system, entry.baseline) for entry in found} == {("vllm @ r2", "vllm @ r1")}
    assert found[0].ratio > 1
    single = make_run({"mars": 1.0}, loads=(0.9,), seeds=(0, 1, 2), num_sessions=30, run_id="r3")
    found = compare.compare_runs(load_runs([faster, single]))
    assert {(entry.system, entry.baseline) for entry in found} == {("mars", "vllm")}


def test_comparisons_without_pairs_are_refused(run, make_run):
    """One system, an unknown baseline, or runs without common sessions: one clear line."""
    single = make_run({"mars": 1.0}, num_sessions=3, run_id="r4")
    with pytest.raises(ConfigError, match="only one system"):
        compare.compare_systems(load_runs([single]))
    with pytest.raises(ConfigError, match="unknown baseline 'vlm'; did you mean 'vllm'"):
        compare.compare_systems(load_runs([run]), "vlm")
    elsewhere = make_run({"vllm": 1.0}, loads=(0.1,), num_sessions=3, run_id="r5")
    with pytest.raises(ConfigError, match="no session ran under both"):
        compare.compare_runs(load_runs([single, elsewhere]))
    with pytest.raises(ConfigError, match="share no system"):
        compare.compare_runs(load_runs([run, make_run({"x": 1, "y": 1}, run_id="r6")]))


def test_few_seeds_are_warned_about(make_run):
    """Fewer than three seeds: the interval misses the variation between arrivals."""
    run = make_run({"vllm": 3.0, "mars": 1.0}, num_sessions=20, run_id="r7")
    notes = compare.warnings_of(compare.compare_systems(load_runs([run])))
    assert notes[0].startswith("1 seed only")


def test_command_says_it_in_words_and_in_json(run, capsys):
    """Sentences and a table on stdout, or JSON; warnings go to stderr."""
    cli.command([run], baseline="vllm")
    output = capsys.readouterr()
    lines = output.out.splitlines()
    assert lines[0] == "swe on h100 (sim, 16 tool cores):"
    assert lines[1].startswith("  mars is ")
    assert "slo_attainment.3" in output.out
    assert "warning:" in output.err
    cli.command([run], as_json=True)
    content = json.loads(capsys.readouterr().out)
    assert content["comparisons"][0]["baseline"] == "vllm"
    assert content["comparisons"][0]["sentence"].startswith("mars is ")
    with pytest.raises(ConfigError, match="not 3"):
        cli.command([run, run, run])
    with pytest.raises(ConfigError, match="--baseline"):
        cli.command([run, run], baseline="vllm")
