"""Every parameter of MARS in one place: default, unit and where the value comes from.

Sources: *paper* = arXiv:2604.26963, *preview* = the authors' public preview code, *ours* = chosen
here on tuning splits. None is specific to a workload, a model or a GPU: whatever depends on those
is measured online.
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
    static_window: float = _param(
        0, "sessions", "ours: > 0 replaces the adaptive window (ablation)"
    )
    fixed_ttl_s: float = _param(0, "s", "ours: > 0 replaces adaptive retention (ablation)")

    # --- control plane: dual-pressure window (AIMD with hysteresis) --------------------------
    window_min: float = _param(2, "sessions", "preview: 2 (OpenHands), 4 (replay)")
    window_decrease: float = _param(0.7, "factor", "preview")
    window_increase: float = _param(1, "sessions", "preview")
    cpu_low: float = _param(2.0, "calls per core", "ours (preview scripts: 1)")
    cpu_high: float = _param(8.0, "calls per core", "ours (preview scripts: 4)")
    cpu_busy: float = _param(
        0.9, "share of cores", "ours: tool cores less busy than this are not under pressure"
    )
    cpu_wait_low_s: float = _param(2.0, "s", "preview")
    cpu_wait_high_s: float = _param(5.0, "s", "preview")
    ema: float = _param(0.2, "weight of the new value", "preview")
    tick_s: float = _param(1.0, "s", "ours: event-driven; the tick only ages the backlog")

    # --- control plane: packing by projected growth ------------------------------------------
    kv_target: float = _param(1.0, "share of KV", "ours: resident working sets fill the cache")
    opportunity: float = _param(
        1, "turns", "ours: turns in the engine below which others may enter"
    )
    busy_high: float = _param(
        0.88, "share of time", "ours: engine busier than this: no opportunism"
    )
    headroom_turns: float = _param(1, "turns", "ours: growth kept free for a resident session")
    entry_turns: float = _param(5, "turns", "ours: growth kept free to let a session in")
    lend: float = _param(
        2.0, "factor", "InferCept's break-even before memory is lent, times this; 0 = never"
    )
    history: float = _param(64, "sessions", "ours: finished sessions remembered per class")
    starvation_s: float = _param(600.0, "s", "ours: backlog age at which arrival order wins")

    # --- internal scheduler: multi-level feedback --------------------------------------------
    level_1: float = _param(2_048, "uncached tokens", "preview")
    level_2: float = _param(8_192, "uncached tokens", "preview")
    level_3: float = _param(32_768, "uncached tokens", "preview")
    quantum_0: float = _param(8_192, "tokens per step", "ours (preview: 2048)")
    quantum_1: float = _param(8_192, "tokens per step", "ours (preview: 1024)")
    quantum_2: float = _param(4_096, "tokens per step", "ours (preview: 512)")
    quantum_3: float = _param(4_096, "tokens per step", "ours (preview: 256)")
    ageing_s: float = _param(30.0, "s per level", "preview")

    # --- retention ----------------------------------------------------------------------------
    pin_share: float = _param(0.95, "share of KV", "ours: soft budget, revocable at any allocation")
    break_even: float = _param(1.0, "factor", "InferCept's break-even time, times this")
    gap_samples: float = _param(30, "calls", "ours: pseudo-count of the global gap distribution")

    # --- tool slots ---------------------------------------------------------------------------
    slots_per_core: float = _param(16.0, "calls per core", "ours (preview: one worker per core)")
    nice_step: float = _param(
        5, "levels", "ours: niceness per waiting session that is expected to end sooner; 0 = never"
    )
    nice_after_s: float = _param(8.0, "core-s", "ours: a call's CPU time at niceness 0")
    short_call_s: float = _param(0.5, "s", "ours: calls expected to be shorter skip the queue")

    def with_overrides(self, overrides: Mapping[str, float]) -> MarsParams:
        """A copy with some values replaced; ConfigError for a name that is no parameter."""
        known = {f.name for f in fields(self)}
        for name in overrides:
            if name not in known:
                raise ConfigError(
                    f"mars has no parameter {name!r} (has {', '.join(sorted(known))})"
                )
        return replace(self, **{name: float(value) for name, value in overrides.items()})


def describe() -> list[tuple[str, float, str, str]]:
    """(name, default, unit, source) of every parameter, for documentation."""
    defaults = MarsParams()
    return [
        (f.name, float(getattr(defaults, f.name)), f.metadata["unit"], f.metadata["source"])
        for f in fields(MarsParams)
    ]
