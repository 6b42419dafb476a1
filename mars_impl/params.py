"""Every parameter of MARS in one place: default, unit and where the value comes from.

Sources: *paper* = arXiv:2604.26963, *preview* = the authors' public preview code, *ours* = chosen
here on tuning splits. None is specific to a workload, a model or a GPU: whatever depends on those
is measured online. What was once a parameter and moves the mean session latency by less than 0.5 %
at half and at twice its value is a constant with a comment in the module that uses it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace

from marsbench.errors import ConfigError


def _param(default: float, unit: str, source: str) -> float:
    value: float = field(default=default, metadata={"unit": unit, "source": source})
    return value


@dataclass(frozen=True, slots=True)
class MarsParams:
    """Parameters of the full MARS. Switches are 0 (off) or 1 (on)."""

    # --- switches (ablations turn these off) -----------------------------------------------
    control_plane: float = _param(1, "switch", "paper: external control plane")
    cpu_signal: float = _param(1, "switch", "paper: CPU side of the dual pressure")
    kv_signal: float = _param(1, "switch", "paper: KV side of the dual pressure")
    coordinator: float = _param(1, "switch", "paper: session-based priority coordinator")
    retention: float = _param(1, "switch", "paper: opportunistic co-scheduler, KV retention")
    quanta: float = _param(1, "switch", "paper: prefill quanta by level; 0 = one threshold")
    longest_first: float = _param(0, "switch", "preview: longest-first under CPU overload")
    host_pins: float = _param(
        0, "switch", "ours: 1 = pin although host memory has what leaves the GPU"
    )
    static_window: float = _param(
        0, "sessions", "ours: > 0 replaces the adaptive window (ablation)"
    )
    fixed_ttl_s: float = _param(0, "s", "ours: > 0 replaces adaptive retention (ablation)")

    # --- control plane: tool pressure ---------------------------------------------------------
    cpu_high: float = _param(8.0, "calls per core", "ours (preview scripts: 4)")
    tick_s: float = _param(1.0, "s", "ours: event-driven; the tick only ages the backlog")

    # --- control plane: packing by projected growth ------------------------------------------
    kv_target: float = _param(1.0, "share of KV", "ours: resident working sets fill the cache")
    host_places: float = _param(
        1.0, "share of KV", "ours: places that host memory makes, at most so much of the GPU's KV"
    )
    headroom_turns: float = _param(1, "turns", "ours: growth kept free for a resident session")
    entry_turns: float = _param(5, "turns", "ours: growth kept free to let a session in")
    lend: float = _param(
        1.0, "factor", "InferCept's break-even before memory is lent, times this; 0 = never"
    )

    slo: float = _param(
        3.0,
        "x time alone",
        "ours: who is not expected to end within it enters last; 0 = no such rule",
    )

    # --- internal scheduler: multi-level feedback --------------------------------------------
    level_2: float = _param(8_192, "uncached tokens", "preview")
    level_3: float = _param(32_768, "uncached tokens", "preview")
    quantum_2: float = _param(4_096, "tokens per step", "ours (preview: 512)")
    quantum_3: float = _param(4_096, "tokens per step", "ours (preview: 256)")

    # --- retention ----------------------------------------------------------------------------
    pin_share: float = _param(0.95, "share of KV", "ours: soft budget, revocable at any allocation")
    break_even: float = _param(1.0, "factor", "InferCept's break-even time, times this")

    # --- tool priority ------------------------------------------------------------------------
    nice_step: float = _param(
        5, "levels", "ours: niceness per waiting session that is expected to end sooner; 0 = never"
    )
    nice_after_s: float = _param(8.0, "core-s", "ours: a call's CPU time at niceness 0")

    def with_overrides(self, overrides: Mapping[str, float]) -> MarsParams:
        """Return a copy with some values replaced; ConfigError for a name that is no parameter."""
        known = {f.name for f in fields(self)}
        for name in overrides:
            if name not in known:
                raise ConfigError(
                    f"mars has no parameter {name!r} (has {', '.join(sorted(known))})"
                )
        return replace(self, **{name: float(value) for name, value in overrides.items()})


def describe() -> list[tuple[str, float, str, str]]:
    """Return (name, default, unit, source) of every parameter, for documentation."""
    defaults = MarsParams()
    return [
        (f.name, float(getattr(defaults, f.name)), f.metadata["unit"], f.metadata["source"])
        for f in fields(MarsParams)
    ]
