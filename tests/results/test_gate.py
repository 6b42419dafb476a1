"""The reference that the gate holds all results against."""

from __future__ import annotations

from pathlib import Path

import yaml

from marsbench.registry import load, table

GATE = Path(__file__).parents[2] / "results" / "reference" / "gate"


def test_the_gate_covers_every_system_of_the_simulator():
    """A system that is registered is in the gate's grid, unless it is made for another engine."""
    named = set(yaml.safe_load((GATE / "config.yaml").read_text(encoding="utf-8"))["system"])
    assert named == {name for name in table("SYSTEMS") if not load("SYSTEMS", name).engines}
