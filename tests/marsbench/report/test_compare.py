"""Paired comparisons: ratios worked out by hand, sessions paired by name, words that are right."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from scipy.stats import gmean

from marsbench.cli import compare as cli
from marsbench.errors import ConfigError
from marsbench.report import compare
from marsbench.report.data import load_runs


@pytest.fixture(scope="module")
def run(make_run):
    factors = {"vllm": 4.0, "mars": 1.0, "twin": 4.0}
    return make_run(factors, loads=(0.9,), seeds=(0, 1, 2), num_sessions=30)


PLACE = {
    "workload": "swe", "profile": "h100", "engine": "sim", "tool_cores": 16, "load": 0.9,
    "rate_per_s": 0.45,
}  # fmt: skip


def headline(found, system):
    return next(
        entry for entry in found if (entry.system, entry.statistic) == (system, compare.HEADLINE)
    )


def test_ratio_is_the_geometric_mean_of_each_seeds_ratio(run):
    """Each seed's ratio of means over the same sessions; over seeds the mean of their logarithms."""
    data = load_runs([run])
    entry = headline(compare.compare_systems(data, "vllm"), "mars")
    means = data.sessions().groupby(["system", "seed"])["latency_s"].mean()
    assert entry.ratio == pytest.approx(gmean(means["vllm"] / means["mars"]))
    assert entry.baseline_value == pytest.approx(means["vllm"].mean())
    assert entry.low < entry.ratio < entry.high
    assert (entry.pairs, entry.distinct, entry.seeds) == (90, 30, 3)
    assert entry.significant
    assert entry.sentence().startswith("mars is ")
    assert "faster in mean session latency than vllm at load 0.9" in entry.sentence()


def test_sessions_are_paired_by_name_and_not_by_position(run):
    """Rows in another order give the same pairs; a session that one side did not run is in none."""
    frame = compare._sessions(load_runs([run]))
    pairs = compare.pair_sessions(frame, "mars", "vllm")
    shuffled = frame.sample(frac=1.0, random_state=5)
    assert compare.pair_sessions(shuffled, "mars", "vllm").equals(pairs)
    for row in pairs.head(5).itertuples():
        same = frame[(frame["seed"] == row.seed) & (frame["session_id"] == row.session_id)]
        by_system = same.set_index("system")["latency_s"]
        assert (row.latency_s_a, row.latency_s_b) == (by_system["mars"], by_system["vllm"])
    gone = frame[~((frame["system"] == "vllm") & (frame["session_id"] == "s3"))]
    left = compare.pair_sessions(gone, "mars", "vllm")
    assert len(left) == len(pairs) - 3
    assert "s3" not in set(left["session_id"])


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


def test_same_data_same_interval(make_run):
    """What is resampled (a single seed's sessions) is drawn from a seeded generator."""
    data = load_runs([make_run({"vllm": 3.0, "mars": 1.0}, num_sessions=20, run_id="r8")])
    first, second = (compare.compare_systems(data, "vllm") for _ in range(2))
    assert first == second
    other = compare.compare_systems(data, "vllm", seed=1)
    assert headline(other, "mars").low != headline(first, "mars").low


def test_repeats_of_a_session_are_no_new_evidence(run):
    """Replaying each session twice under another id leaves a single seed's interval as wide."""
    frame = compare._sessions(load_runs([run]).only(seed=0))
    frame = frame[frame["system"].isin(["mars", "vllm"])]
    twice = pd.concat([frame, frame.assign(session_id=frame["session_id"] + "~2")])
    widths = []
    for rows in (frame, twice):
        entry = next(compare._of_sessions(PLACE, ("mars", "vllm"), rows, 0))
        widths.append(np.log(entry.high / entry.low))
        assert entry.distinct == 30
    assert entry.pairs == 60
    assert widths[1] == pytest.approx(widths[0], rel=1e-6)
    assert any("60 pairs replay 30 distinct" in note for note in compare.warnings_of([entry]))


def test_a_run_without_tables_is_compared_by_its_summary(run, tmp_path):
    """A reference run that holds only its summary gives the same ratio of means over seeds."""
    (tmp_path / "summary.json").write_text((run / "summary.json").read_text())
    whole = headline(compare.compare_systems(load_runs([run]), "vllm"), "mars")
    short = headline(compare.compare_systems(load_runs([tmp_path]), "vllm"), "mars")
    assert short.ratio == pytest.approx(whole.ratio)
    assert 1 < short.low < short.ratio < short.high
    assert (short.pairs, short.distinct, short.seeds) == (None, None, 3)


def test_no_ratio_is_told_past_the_stability_point(run):
    """Where a side is unstable the headline says so instead of a ratio, and names the side."""
    data = load_runs([run])
    data.cells.loc[data.cells["system"] == "vllm", "unstable"] = 1
    entry = headline(compare.compare_systems(data, "vllm"), "mars")
    assert entry.sentence().startswith("vllm unstable at load 0.9: ")
    assert "x (" not in entry.sentence()
    assert entry.to_json()["unstable"] == ("vllm",)
    steady = headline(compare.compare_systems(data, "twin"), "mars")
    assert steady.sentence().startswith("mars is ")
    header, rows = compare.comparison_rows([entry, steady])
    assert [row[header.index("note")] for row in rows] == ["unstable", ""]
    assert any(
        note.startswith("unstable: vllm at load 0.9") for note in compare.warnings_of([entry])
    )


def test_baseline_is_the_first_system_named(run):
    """Without --baseline: the first system of the run, in its tuned variant if that was run."""
    assert compare.default_baseline(["a", "b", "b-tuned"]) == "a"
    assert compare.default_baseline(["a", "b", "a-tuned"]) == "a-tuned"
    found = compare.compare_systems(load_runs([run]))
    assert {entry.baseline for entry in found} == {"vllm"}


def test_failed_sessions_leave_the_latency_pairs(run):
    """A session that failed under one side is in no latency pair, and the reader is told."""
    data = load_runs([run])
    frame = data.sessions()
    failed = (frame["system"] == "mars") & (frame["session_id"] == "s0")
    frame.loc[failed, ["latency_s", "slowdown"]] = np.nan
    frame["met"] = (frame["latency_s"] <= 3 * frame["ideal_s"]).astype(float)
    frame["original"] = frame["session_id"]
    found = list(compare._of_sessions(PLACE, ("mars", "vllm"), frame, 0))
    assert (found[0].pairs, found[0].unpaired) == (87, 3)
    assert (found[-1].statistic, found[-1].pairs) == ("slo_attainment.3", 90)
    assert any("failed under one side" in note for note in compare.warnings_of(found))


def test_two_runs_compare_the_systems_they_share(run, make_run):
    """The second run's systems are measured against the first run's."""
    faster = make_run({"vllm": 2.0}, loads=(0.9,), seeds=(0, 1, 2), num_sessions=30, run_id="r2")
    found = compare.compare_runs(load_runs([run, faster]))
    assert {(entry.system, entry.baseline) for entry in found} == {("vllm @ r2", "vllm @ r1")}
    assert found[0].ratio > 1
    single = make_run({"mars": 1.0}, loads=(0.9,), seeds=(0, 1, 2), num_sessions=30, run_id="r3")
    found = compare.compare_runs(load_runs([faster, single]))
    assert {(entry.system, entry.baseline) for entry in found} == {("mars", "vllm")}


def test_runs_of_different_sessions_are_compared_by_those_they_share(make_run):
    """One run lost its last six sessions and the other its first five: nineteen of thirty are in
    both, and each is divided by itself although it stands in another row.
    """
    runs = []
    for name, factor, lost in (("a", 4.0, range(24, 30)), ("b", 1.0, range(5))):
        path = make_run({"vllm": factor}, seeds=(0, 1, 2), num_sessions=30, run_id=name)
        table = pd.read_parquet(path / "sessions.parquet")
        left = table[~table["session_id"].isin([f"s{number}" for number in lost])]
        left.to_parquet(path / "sessions.parquet")
        runs.append((path, left))
    shared = [f"s{number}" for number in range(5, 24)]
    means = [
        left[left["session_id"].isin(shared)].groupby("seed")["latency_s"].mean()
        for _, left in runs
    ]
    entry = headline(compare.compare_runs(load_runs([path for path, _ in runs])), "vllm @ b")
    assert (entry.pairs, entry.distinct) == (3 * 19, 19)
    assert entry.ratio == pytest.approx(gmean(means[0] / means[1]))


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
