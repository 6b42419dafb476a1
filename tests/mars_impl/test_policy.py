"""MARS and its ablations as registered systems."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest

from mars_impl import SYSTEMS
from mars_impl.params import MarsParams
from mars_impl.policy import ablation
from mars_impl.scheduler import Mars
from marsbench.engine.base import EngineConfig
from marsbench.errors import ConfigError
from marsbench.registry import load

SOURCES = Path(__file__).parents[2] / "mars_impl"
CHANGES = {
    "mars": {},
    "mars-no-control-plane": {"control_plane", "cpu_signal"},
    "mars-no-cpu-signal": {"cpu_signal"},
    "mars-no-kv-signal": {"kv_signal"},
    "mars-static-window": {"static_window", "kv_signal"},
    "mars-no-coordinator": {"coordinator"},
    "mars-no-retention": {"retention"},
    "mars-fixed-ttl": {"fixed_ttl_s"},
    "mars-one-threshold": {"quanta"},
    "mars-longest-first": {"longest_first"},
    "mars-no-lending": {"lend"},
    "mars-no-slo": {"slo"},
    "mars-no-tool-priority": {"nice_step"},
}


def built(build, name, **params) -> Mars:
    return load("SYSTEMS", name).build(build.context(params=params)).scheduling


def test_every_registered_system_has_its_name():
    """The table, the object and the list of ablations agree."""
    assert [load("SYSTEMS", name).name for name in SYSTEMS] == list(SYSTEMS)
    assert set(SYSTEMS) == {*CHANGES, "mars-preview", "mars-sglang"}


@pytest.mark.parametrize("name", CHANGES)
def test_an_ablation_changes_what_it_is_named_after_and_nothing_else(build, name):
    """Its parameters differ from those of ``mars`` in exactly these, and one object has every role."""
    policies = load("SYSTEMS", name).build(build.context())
    params, full = policies.scheduling.params, MarsParams()
    changed = {f.name for f in fields(full) if getattr(params, f.name) != getattr(full, f.name)}
    assert changed == set(CHANGES[name])
    assert policies.scheduling is policies.retention is policies.admission is policies.tools


def test_what_the_user_gives_wins_over_the_ablation(build):
    """A window of 3 replaces the ablation's 8; a wrong name is refused there too."""
    assert built(build, "mars-static-window", static_window=3.0).params.static_window == 3.0
    with pytest.raises(ConfigError, match="no parameter 'window'"):
        built(build, "mars-static-window", window=3.0)


@pytest.mark.parametrize("name", SYSTEMS)
def test_grids_name_parameters_that_exist(build, name):
    """Every value of a tuning grid is an engine flag or is accepted, and there are few of them."""
    system = load("SYSTEMS", name)
    flags = {f.name for f in fields(EngineConfig)}
    size = 1
    for parameter, values in system.tunable.items():
        size *= len(values)
        for value in values:
            if parameter not in flags:
                system.build(build.context(params={parameter: float(value)}))
    assert size <= 27
    assert system.tunable if name in {"mars", "mars-preview", "mars-static-window"} else True


def test_an_ablation_says_so(build):
    """The one-line summary of each ablation begins with the word."""
    assert ablation("x", "without y", {"quanta": 0}).summary == "ablation: without y"


def test_every_parameter_is_used():
    """A parameter that nothing reads would be tuned, swept and documented in vain."""
    texts = [path.read_text(encoding="utf-8") for path in SOURCES.glob("*.py")
             if path.name not in {"params.py", "preview.py"}]  # fmt: skip
    code = "\n".join(texts)
    unread = [
        f.name for f in fields(MarsParams) if not re.search(rf"(params|\bp)\.{f.name}\b", code)
    ]
    assert not unread
