"""MARS as systems: the full one and its ablations, each a set of parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from mars_impl.fleet import build_fleet
from mars_impl.scheduler import Mars
from marsbench.core import PolicyContext
from marsbench.system import FleetPolicies, Policies, System

WINDOWS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 14, 16, 20, 24, 32, 48, 64)


def build(context: PolicyContext) -> Policies:
    """Build one Mars object that plays every role."""
    mars = Mars(context)
    return Policies(scheduling=mars, retention=mars, admission=mars, tools=mars)


def ablation(
    name: str,
    summary: str,
    changes: Mapping[str, float],
    tunable: Mapping[str, Sequence[float]] | None = None,
    limits: Mapping[str, tuple[float, float]] | None = None,
) -> System:
    """Return MARS with some parameters changed; what the user gives still wins."""

    def build_changed(context: PolicyContext) -> Policies:
        given = dict(context.params.items())
        return build(replace(context, params={**changes, **given}))

    def build_changed_fleet(context: PolicyContext, num_replicas: int) -> FleetPolicies:
        given = dict(context.params.items())
        return build_fleet(replace(context, params={**changes, **given}), num_replicas)

    return System(
        name,
        f"ablation: {summary}",
        build_changed,
        tunable=tunable or {},
        limits=limits or {},
        fleet=build_changed_fleet,
    )


MARS = System(
    "mars",
    "MARS in full (arXiv:2604.26963): control plane, coordinator, retention",
    build,
    tunable={
        "kv_target": (0.85, 0.95, 1.0),
        "entry_turns": (2.0, 5.0, 10.0),
        "lend": (0.0, 1.0, 2.0),
    },
    limits={"kv_target": (0.3, 1.5), "entry_turns": (0.0, 100.0), "lend": (0.0, 64.0)},
    fleet=build_fleet,
)
SGLANG_RULES: dict[str, int | str] = {"rules": "sglang", "block_size": 1}
"""What ``sim`` has to be told to schedule as SGLang does: its rules and its page size."""
MARS_SGLANG = replace(
    MARS,
    name="mars-sglang",
    summary="MARS inside SGLang instead of vLLM",
    engines=("sglang-core", "sglang", "sim"),
    engine=SGLANG_RULES,
    fleet=None,
)
NO_CONTROL_PLANE = ablation(
    "mars-no-control-plane",
    "every turn enters the engine at once, tool calls share the cores",
    {"control_plane": 0, "cpu_signal": 0},
)
NO_CPU_SIGNAL = ablation(
    "mars-no-cpu-signal",
    "tool pressure neither shrinks the window nor limits or weighs running calls",
    {"cpu_signal": 0},
)
NO_KV_SIGNAL = ablation(
    "mars-no-kv-signal",
    "sessions enter and stay whatever memory they need",
    {"kv_signal": 0},
)
STATIC_WINDOW = ablation(
    "mars-static-window",
    "a constant number of active sessions (default 8) instead of the adaptive window",
    {"static_window": 8, "kv_signal": 0},
    tunable={"static_window": WINDOWS},
    limits={"static_window": (1, 1024)},
)
NO_COORDINATOR = ablation(
    "mars-no-coordinator",
    "vLLM's own order, chunks and victims inside the engine",
    {"coordinator": 0},
)
NO_RETENTION = ablation(
    "mars-no-retention",
    "blocks of a finished turn go to the prefix cache's LRU",
    {"retention": 0},
)
FIXED_TTL = ablation(
    "mars-fixed-ttl",
    "every finished turn is kept for the same time (default 6 s)",
    {"fixed_ttl_s": 6},
    tunable={"fixed_ttl_s": (1.0, 2.0, 6.0, 20.0, 60.0)},
)
ONE_THRESHOLD = ablation(
    "mars-one-threshold",
    "one prefill chunk limit instead of a quantum per level",
    {"quanta": 0},
)
LONGEST_FIRST = ablation(
    "mars-longest-first",
    "under tool pressure the longest expected session enters first, as in the preview",
    {"longest_first": 1},
)
NO_TOOL_PRIORITY = ablation(
    "mars-no-tool-priority",
    "long tool calls of all sessions share the cores equally",
    {"nice_step": 0},
)
NO_SLO = ablation(
    "mars-no-slo",
    "who enters is decided by the expected time to the end alone, not by what can still be in time",
    {"slo": 0},
)
NO_LENDING = ablation(
    "mars-no-lending",
    "sessions keep their place in memory however long their tools run",
    {"lend": 0},
)
