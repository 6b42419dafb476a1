"""Objectives in words: what they mean, what is refused and how, and what failed sessions count as."""

from __future__ import annotations

import math

import pandas as pd
import pytest

from marsbench.errors import ConfigError
from marsbench.metrics.slo import parse_slo

WINDOW = {"warmup_s": 0.0, "cooldown_s": 0.0, "window_s": 10.0}


def entry(*, failed=0, arrived=4, **metrics):
    return {
        "sessions": {"arrived": arrived, "failed": failed},
        "metrics": metrics,
        "window": WINDOW,
    }


def never():
    raise AssertionError("sessions are read only where some failed")


@pytest.mark.parametrize(
    ("text", "column", "sign", "bound", "said"),
    [
        ("p95 slowdown <= 3", "session_slowdown.p95", "<=", 3.0, "p95 slowdown <= 3"),
        ("P95 Session Slowdown<=3x", "session_slowdown.p95", "<=", 3.0, "p95 slowdown <= 3"),
        ("mean latency <= 600", "session_latency_s.mean", "<=", 600.0, "mean latency <= 600 s"),
        ("median latency < 10min", "session_latency_s.p50", "<", 600.0, "median latency < 600 s"),
        ("attainment@3 >= 0.9", "slo_attainment.3", ">=", 0.9, "attainment@3 >= 0.9"),
        ("attainment @ 3.0 >= 90%", "slo_attainment.3", ">=", 0.9, "attainment@3 >= 0.9"),
        ("goodput@1.5 > 36/h", "session_goodput_per_s.1.5", ">", 0.01, "goodput@1.5 > 36/h"),
        ("p99 ttft <= 500ms", "ttft_s.p99", "<=", 0.5, "p99 ttft <= 0.5 s"),
        ("p90 tool queue <= 2", "tool_queue_s.p90", "<=", 2.0, "p90 tool queue <= 2 s"),
        ("failed <= 1%", "failed", "<=", 0.01, "failed <= 0.01"),
        ("hit rate >= .5", "prefix_cache_hit_rate", ">=", 0.5, "hit rate >= 0.5"),
        ("throughput >= 0.5/min", "sessions_per_s", ">=", 0.5 / 60, "throughput >= 30/h"),
    ],
)  # fmt: skip
def test_one_bound(text, column, sign, bound, said):
    """Case, blanks and units may vary; there is one reading, and one way of saying it back."""
    (clause,) = parse_slo(text).clauses
    assert (clause.column, clause.sign) == (column, sign)
    assert clause.bound == pytest.approx(bound)
    assert clause.text == said
    again = parse_slo(said).clauses[0]
    assert again.bound == pytest.approx(bound)
    assert again.text == said


def test_several_bounds():
    """Bounds joined by "and" or a comma hold together."""
    slo = parse_slo("p95 slowdown <= 3, attainment@3 >= 0.9 and failed <= 0")
    assert [clause.column for clause in slo.clauses] == [
        "session_slowdown.p95", "slo_attainment.3", "failed",
    ]  # fmt: skip
    assert slo.text == "p95 slowdown <= 3 and attainment@3 >= 0.9 and failed <= 0"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", "a bound is missing"),
        ("p95 slowdown <= 3 and", "a bound is missing"),
        ("p95 slowdown <= 3,", "a bound is missing"),
        ("p95 slowdown", "is no bound"),
        ("p95 slowdown = 3", "is no bound"),
        ("p95 slowdown <= -3", "is no bound"),
        ("p95 slowdown <= nan", "is no bound"),
        ("p95 slowdwn <= 3", "did you mean 'slowdown'"),
        ("slowdown <= 3", "say which slowdown"),
        ("p97 slowdown <= 3", "say which slowdown: one of mean slowdown"),
        ("p95 slowdown >= 3", "lower slowdown is better, so bound it with <="),
        ("attainment@3 <= 0.9", "higher attainment is better"),
        ("attainment >= 0.9", "say attainment@3"),
        ("attainment@4 >= 0.9", "of 1.5, 2, 3, 5, 10"),
        ("attainment@1.5.2 >= 0.9", "say attainment@3"),
        ("p95 attainment@3 >= 0.9", "say attainment@3"),
        ("attainment@3 >= 90", "never above 1; say 0.9 or 90%"),
        ("latency@3 <= 9", "only attainment and goodput"),
        ("p95 latency <= 3 days", "no unit 'days'"),
        ("p95 slowdown <= 3 s", "no unit 's'"),
        ("p95 slowdown <= 0.5", "never below 1"),
        ("p95 throughput >= 1", "leave out 'p95'"),
        ("p95 slowdown <= 3 and p95 slowdown <= 4", "bounded twice"),
    ],
)
def test_mistakes_are_one_line(text, line):
    """What is wrong, where, and what would be right."""
    with pytest.raises(ConfigError) as caught:
        parse_slo(text)
    said = str(caught.value)
    assert line in said
    assert said.startswith("--slo ")
    assert "\n" not in said


def test_a_cell_is_held_against_its_summary():
    """Without failed sessions the summary has the number; a number that is missing meets nothing."""
    (clause,) = parse_slo("p95 slowdown <= 3").clauses
    known = entry(session_slowdown={"p95": 2.9})
    assert clause.value(known, never) == 2.9
    assert clause.holds(2.9)
    assert clause.holds(3.0)
    assert not clause.holds(3.1)
    assert not clause.holds(clause.value(entry(session_slowdown={"p95": None}), never))


def sessions(rows):
    columns = ["parent", "arrival_s", "status", "latency_s", "ideal_s", "slowdown"]
    return pd.DataFrame(rows, columns=columns)


def test_failed_sessions_are_infinitely_slow():
    """Turning every second session away does not help: the median of those that ran is 1, of all
    it is infinite. A session that cannot run alone is left out, and so is a sub-agent.
    """
    nan = math.nan
    rows = sessions([
        (-1, 0.0, "ok", 10.0, 10.0, 1.0),
        (-1, 1.0, "error", nan, 10.0, nan),
        (-1, 2.0, "ok", 10.0, 10.0, 1.0),
        (-1, 3.0, "error", nan, 10.0, nan),
        (-1, 4.0, "too_large", nan, nan, nan),
        (0, 0.5, "ok", 900.0, 10.0, 90.0),
    ])  # fmt: skip
    some = entry(failed=3, arrived=5, session_slowdown={"p50": 1.0}, session_latency_s={"mean": 10})
    (median,) = parse_slo("median slowdown <= 3").clauses
    assert median.value(some, lambda: rows) == math.inf
    (mean,) = parse_slo("mean latency <= 600").clauses
    assert mean.value(some, lambda: rows) == math.inf
    one_bad = rows.iloc[[0, 2, 2, 2, 4]]
    assert median.value(some, lambda: one_bad) == 1.0
    assert not median.holds(math.inf)
    (share,) = parse_slo("failed <= 50%").clauses
    assert share.value(some, never) == 0.6


def test_failures_outside_the_measured_window_do_not_count():
    """Warm-up and cool-down are cut from what failed as they are from what completed."""
    nan = math.nan
    rows = sessions([
        (-1, 0.0, "error", nan, 10.0, nan),
        (-1, 5.0, "ok", 20.0, 10.0, 2.0),
        (-1, 9.0, "error", nan, 10.0, nan),
    ])  # fmt: skip
    cut = {"warmup_s": 1.0, "cooldown_s": 2.0, "window_s": 6.0}
    some = {**entry(failed=1, arrived=2), "window": cut}
    (mean,) = parse_slo("mean slowdown <= 3").clauses
    assert mean.value(some, lambda: rows) == 2.0
