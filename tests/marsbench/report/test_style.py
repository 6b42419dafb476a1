"""Every system looks the same in every figure."""

from __future__ import annotations

from matplotlib.figure import Figure

from marsbench.attribution import COMPONENTS
from marsbench.report.style import COMPONENT_COLORS, SYSTEM_LOOKS, in_order, looks, scale_to


def test_mars_is_first_and_unknown_systems_are_last():
    """MARS, its variants, the known systems in their order, then the rest by name."""
    names = ["zeta", "vllm", "mars-no-retention", "alpha", "mars", "autellix"]
    assert in_order(names) == ["mars", "mars-no-retention", "vllm", "autellix", "alpha", "zeta"]


def test_no_two_systems_look_alike():
    """Colour, marker and line together are unique, for known and for many unknown systems."""
    names = [*SYSTEM_LOOKS, *(f"mine-{k}" for k in range(12))]
    drawn = [(look.color, look.marker, look.dash) for look in looks(names).values()]
    assert len(set(drawn)) == len(names)


def test_known_looks_do_not_depend_on_the_company():
    """A known system keeps its colour whatever else is drawn."""
    assert looks(["vllm", "other"])["vllm"] == looks(["vllm", "mars"])["vllm"]


def test_every_latency_component_has_a_colour():
    """Components are stacked in the order of the attribution."""
    assert tuple(COMPONENT_COLORS) == COMPONENTS
    assert len(set(COMPONENT_COLORS.values())) == len(COMPONENTS)


def test_scale_follows_the_span_of_the_values():
    """More than a factor of 30: logarithmic; else linear from zero."""
    axes = Figure().subplots()
    scale_to(axes, [1.0, 10.0])
    assert axes.get_yscale() == "linear"
    assert axes.get_ylim()[0] == 0
    scale_to(axes, [1.0, 100.0])
    assert axes.get_yscale() == "log"
