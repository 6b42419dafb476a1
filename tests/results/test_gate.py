"""The reference that the gate holds all results against."""

from __future__ import annotations

from pathlib import Path

import yaml

from marsbench.registry import load, table

GATE = Path(__file__).parents[2] / "results" / "reference" / "gate"


STOPS = "sglang-spf"
"""SGLang runs out of memory with it in this grid, and the simulator says so."""


def test_the_gate_covers_every_system_of_the_simulator():
    """A system that is registered is in the gate's grid, unless it is made for other engines alone."""
    named = set(yaml.safe_load((GATE / "config.yaml").read_text(encoding="utf-8"))["system"])
    systems = {name: load("SYSTEMS", name) for name in table("SYSTEMS")}
    simulated = {
        name for name, made in systems.items() if not made.engines or "sim" in made.engines
    }
    assert named == simulated - {STOPS}
