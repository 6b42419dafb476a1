"""NAME-tuned and NAME-best: names, grids, and which parameters win."""

from __future__ import annotations

import math

import pytest

from marsbench.core import PolicyContext
from marsbench.errors import ConfigError
from marsbench.experiment.tuning import candidates, mean_latency_s, pick, resolve, search
from marsbench.system import System


def test_suffixes_name_variants():
    """Every system with a grid has a tuned and a best variant; others only themselves."""
    tuned, system = resolve("static-tuned")
    assert (tuned.base, tuned.variant, system.name) == ("static", "tuned", "static")
    assert resolve("static-best")[0].variant == "best"
    assert resolve("vllm")[0].variant == ""


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("vlm", "did you mean 'vllm'?"),
        ("vlm-tuned", "did you mean 'vllm-tuned'?"),
        ("nowhere.SYSTEM", "cannot load system"),
        ("marsbench.config.Value", "is not a marsbench.system.System"),
    ],
)
def test_unknown_systems_are_one_line(name, line):
    """A name that means nothing gets the closest one that does."""
    with pytest.raises(ConfigError, match=line.replace("?", r"\?")):
        resolve(name)


def test_only_grids_can_be_tuned(monkeypatch):
    """A variant of a system without a grid would be the system itself under another name."""
    plain = System("plain", "")
    monkeypatch.setattr("marsbench.experiment.tuning.table", lambda kind: {"plain": "x"})
    monkeypatch.setattr("marsbench.experiment.tuning.system_named", lambda name: plain)
    with pytest.raises(ConfigError, match="has no parameters to tune; run 'plain' itself"):
        resolve("plain-tuned")


def test_grid_is_the_product():
    """Two values times three values are six candidates, in order of the grid."""
    system = System("x", "", tunable={"a": (1, 2), "b": (3, 4, 5)})
    grid = candidates(system)
    assert len(grid) == 6
    assert (grid[0], grid[1], grid[-1]) == ({"a": 1, "b": 3}, {"a": 1, "b": 4}, {"a": 2, "b": 5})


def test_lowest_mean_latency_wins():
    """The first of equals wins, so that results do not depend on anything but the grid."""
    assert pick([({"a": 1}, 3.0), ({"a": 2}, 2.0), ({"a": 3}, 2.0)]) == {"a": 2}
    with pytest.raises(ConfigError, match="no session of the tuning split completes"):
        pick([({"a": 1}, math.inf)])


def test_failed_sessions_have_no_latency():
    """The mean is over completed sessions; with none it is infinite."""
    assert mean_latency_s([1.0, None, 3.0]) == 2.0
    assert mean_latency_s([None]) == math.inf


def test_grids_name_real_parameters():
    """Every grid of a registered system builds a policy with its first and last candidate."""
    from marsbench.experiment.wiring import split_params
    from marsbench.registry import table

    context = PolicyContext(1000, 16, 8192, 256, 8, 10_000.0)
    for name in table("SYSTEMS"):
        _, system = resolve(name)
        for params in (candidates(system)[0], candidates(system)[-1]):
            _, policy_params = split_params(system, params)
            if system.clairvoyant is None:
                system.build(PolicyContext(**{**_fields(context), "params": policy_params}))


def _fields(context: PolicyContext) -> dict:
    return {name: getattr(context, name) for name in context.__dataclass_fields__}


def searched(tunable, cost, limits=None):
    """What tuning tries for a grid when the mean latency is ``cost`` of the parameters."""
    system = System("x", "", tunable=tunable, limits=limits or {})
    return search(system, lambda wanted: [cost(**params) for params in wanted])


def test_a_best_value_on_the_edge_widens_the_grid_until_it_is_inside():
    """Best at 50, grid 1 to 4: 8, 16, 32, 64 and 128 follow, then 64 is inside. Downwards likewise."""
    tried = searched({"a": (1, 2, 4)}, lambda a: abs(a - 50))
    assert [params["a"] for params, _ in tried] == [1, 2, 4, 8, 16, 32, 64, 128]
    assert pick(tried) == {"a": 64}
    down = searched({"a": (1.0, 2.0)}, lambda a: abs(a - 0.3))
    assert [params["a"] for params, _ in down] == [1.0, 2.0, 0.5, 0.25, 0.125]


def test_a_best_value_inside_the_grid_or_at_its_limit_widens_nothing():
    """A share of 1 cannot grow; 0 is the least value unless a system says otherwise."""
    assert len(searched({"a": (1, 2, 3)}, lambda a: abs(a - 2))) == 3
    assert len(searched({"a": (0.5, 1.0)}, lambda a: -a, {"a": (0.0, 1.0)})) == 2
    assert len(searched({"a": (0, 1)}, lambda a: a)) == 2
    assert [p["a"] for p, _ in searched({"a": (0.6, 0.9)}, lambda a: -a, {"a": (0.0, 1.0)})] == [
        0.6, 0.9, 1.0,
    ]  # fmt: skip


def test_two_parameters_on_their_edges_move_one_at_a_time_and_together():
    """Both are best at 8: from (2, 2) on to (4, 2), (2, 4) and (4, 4), and so on until inside."""
    tried = searched({"a": (1, 2), "b": (1, 2)}, lambda a, b: abs(a - 8) + abs(b - 8))
    assert [tuple(p.values()) for p, _ in tried[4:7]] == [(4, 2), (2, 4), (4, 4)]
    assert pick(tried) == {"a": 8, "b": 8}
    assert max(p["a"] for p, _ in tried) == 16


def test_a_parameter_that_changes_nothing_is_not_widened_for_ever():
    """Equal latencies keep the first candidate, which one step outwards puts inside."""
    assert len(searched({"a": (1.0, 2.0, 4.0)}, lambda a: 7.0)) == 4
