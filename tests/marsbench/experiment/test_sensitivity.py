"""One parameter is moved at a time, on the same sessions, and compared with the default."""

from __future__ import annotations

import numpy as np
import pytest

from marsbench.cli.progress import Quiet
from marsbench.config import load_config
from marsbench.core import Session, Turn
from marsbench.errors import ConfigError
from marsbench.experiment.cells import Point
from marsbench.experiment.lab import Lab
from marsbench.experiment.memo import Memo
from marsbench.experiment.pool import Pool
from marsbench.experiment.sensitivity import (
    DEFAULT,
    Move,
    SeedLatencies,
    check,
    effects_of,
    frame,
    grid_of,
    named_system,
    sensitivity,
)
from marsbench.system import System

NAN = float("nan")
POINT = Point("w", "p", tool_cores=4, load=0.8, rate_per_s=None, seed=0)


class Told(Quiet):
    """A reporter that remembers the stages it was told of."""

    def __init__(self) -> None:
        self.stages: list[str] = []

    def stage(self, text: str) -> None:
        self.stages.append(text)


def seed_of(names, default, moved) -> SeedLatencies:
    sessions = tuple(Session(name, (Turn(1, 1),)) for name in names)
    of = {Move(DEFAULT, None): np.array(default), Move("x", 2): np.array(moved)}
    return SeedLatencies(sessions, of)


@pytest.fixture
def lab(trace):
    """lab(system="static", **flags) -> a Lab on the tuning split of 16 small sessions."""

    def make(system="static", **flags):
        given = {"workload": [str(trace)], "system": system, "sessions": 4, "seeds": 3,
                 "rate_per_s": [1.0], "load": [], "split": "tuning", **flags}  # fmt: skip
        told = Told()
        return Lab(load_config(flags=given), Memo(None, told.note), Pool(1), told)

    return make


def test_ratios_by_hand():
    """Twice as slow in each of three seeds: ratio 2 without any width, and 1 for the default."""
    seeds = [seed_of("ab", [k, 3 * k], [2 * k, 6 * k]) for k in (1.0, 2.0, 3.0)]
    default, moved = effects_of(POINT, seeds)
    assert (default.parameter, default.value, default.mean_latency_s) == (DEFAULT, None, 4.0)
    assert (default.ratio, default.low, default.high, default.p99_ratio) == (1, 1, 1, 1)
    assert (moved.parameter, moved.value, moved.mean_latency_s) == ("x", 2, 8.0)
    assert [moved.ratio, moved.low, moved.high, moved.p99_ratio] == pytest.approx([2, 2, 2, 2])
    assert (moved.pairs, moved.unpaired, moved.load, moved.tool_cores) == (6, 0, 0.8, 4)


def test_only_sessions_of_both_sides_count():
    """A session that failed on one side is left out and counted; with none left there is no ratio."""
    seeds = [seed_of("abc", [1.0, 9.0, NAN], [3.0, NAN, 5.0])] * 3
    default, moved = effects_of(POINT, seeds)
    assert (default.mean_latency_s, default.pairs, default.unpaired) == (5.0, 6, 3)
    assert (moved.mean_latency_s, moved.pairs, moved.unpaired) == (3.0, 3, 6)
    assert moved.ratio == pytest.approx(3)
    _, none = effects_of(POINT, [seed_of("a", [1.0], [NAN])])
    assert (none.ratio, none.low, none.p99_ratio, none.mean_latency_s) == (None,) * 4
    assert (none.pairs, none.unpaired) == (0, 1)


def test_given_values_replace_or_join_the_grid():
    """A name of the grid gets other values, another name stands beside it; no name at all is an error."""
    system = System("s", "", tunable={"a": (1, 2), "b": (3,)})
    assert grid_of(system, {"a": [5], "c": [6]}) == {"a": [5], "b": (3,), "c": [6]}
    with pytest.raises(ConfigError, match="'plain' has no parameter grid; give one with --param"):
        grid_of(System("plain", ""), {})


def test_a_window_wider_than_the_sessions_has_no_effect(lab):
    """Of four sessions a window of 64 keeps out none, as the default of 8: ratio 1; a window of 1
    makes them wait for each other.
    """
    made = lab()
    (rows,) = sensitivity(made, {"window": [64, 1]})
    assert [(row.parameter, row.value) for row in rows] == [
        (DEFAULT, None), ("window", 64), ("window", 1),
    ]  # fmt: skip
    default, wide, narrow = rows
    assert (wide.ratio, wide.low, wide.high, wide.p99_ratio) == (1, 1, 1, 1)
    assert wide.mean_latency_s == default.mean_latency_s
    assert narrow.ratio > 1
    assert narrow.low <= narrow.ratio <= narrow.high
    assert all((row.pairs, row.unpaired, row.rate_per_s) == (12, 0, 1.0) for row in rows)
    assert len(frame(rows)) == 3
    assert len(made.reporter.stages) == 3, "one line a seed"


def test_one_group_of_rows_for_each_place(lab):
    """Two rates with three seeds are two groups, each with a default of its own."""
    groups = list(sensitivity(lab(rate_per_s=[0.1, 1.0], sessions=2), {"window": [1]}))
    assert [[row.rate_per_s for row in rows] for rows in groups] == [[0.1, 0.1], [1.0, 1.0]]
    assert [rows[0].parameter for rows in groups] == [DEFAULT, DEFAULT]


def test_what_the_experiment_sets_is_the_default(lab):
    """With params.static.window = 1 a window of 1 is no change."""
    (rows,) = sensitivity(lab(params={"static": {"window": 1}}), {"window": [1]})
    assert rows[1].ratio == 1
    assert rows[1].mean_latency_s == rows[0].mean_latency_s


@pytest.mark.parametrize(
    ("grid", "line"),
    [
        ({"windw": [1]}, "unknown parameter of system 'static' 'windw'; did you mean 'window'"),
        ({"window": [4, 0]}, "static: window must be at least 1, got 0"),
        ({"window": ["wide"]}, "expected a number, got 'wide'"),
        ({"max_num_seqs": [0]}, "max_num_seqs: must be positive"),
    ],
)
def test_wrong_parameters_are_found_before_anything_is_measured(lab, grid, line):
    """A name that the system does not read, and a value that it refuses, are one line."""
    made = lab()
    with pytest.raises(ConfigError, match=line):
        check(made, grid)
    assert made.reporter.stages == []


def test_a_server_is_no_place_for_this(lab):
    """On an engine without virtual time two runs differ by more than their parameter."""
    with pytest.raises(ConfigError, match="virtual time and engine openai is a server"):
        check(lab(engine={"name": "openai"}), {"window": [1]})


@pytest.mark.parametrize(
    ("system", "line"),
    [(["static", "vllm"], "takes one system, not 2"), ("static-tuned", "give 'static'")],
)
def test_one_system_with_defaults(lab, system, line):
    """Several systems, and one that chooses its own parameters, have no default to move from."""
    with pytest.raises(ConfigError, match=line):
        named_system(lab(system))
