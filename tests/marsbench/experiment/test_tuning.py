"""NAME-tuned and NAME-best: names, grids, and which parameters win."""

from __future__ import annotations

import math

import pytest

from marsbench.core import PolicyContext
from marsbench.errors import ConfigError
from marsbench.experiment.tuning import candidates, mean_latency_s, pick, resolve
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
