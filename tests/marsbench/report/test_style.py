"""Every system looks the same in every figure."""

from __future__ import annotations

from matplotlib.figure import Figure

from marsbench.attribution import COMPONENTS
from marsbench.report.style import COMPONENT_COLORS, SYSTEM_LOOKS, _short, in_order, looks, scale_to


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


def test_tuned_variants_look_like_their_system():
    """NAME-tuned has NAME's colour and marker with another line, and stands beside it."""
    assert in_order(["concur", "autellix-tuned", "autellix"])[:2] == ["autellix", "autellix-tuned"]
    drawn = looks(["autellix", "autellix-tuned"])
    assert drawn["autellix"].color == drawn["autellix-tuned"].color
    assert drawn["autellix"].dash != drawn["autellix-tuned"].dash


def test_large_numbers_are_short():
    """Ticks say 20k and 3M."""
    values = [(0.25, "0.25"), (5000, "5000"), (20_000, "20k"), (3e6, "3M"), (2.5e9, "2.5G")]
    assert [_short(value, None) for value, _ in values] == [text for _, text in values]


def test_every_latency_component_has_a_colour():
    """Components are stacked in the order of the attribution."""
    assert tuple(COMPONENT_COLORS) == COMPONENTS
    assert len(set(COMPONENT_COLORS.values())) == len(COMPONENTS)


def test_scale_follows_the_span_of_the_values():
    """More than a factor of 30: logarithmic; else linear from zero."""
    near, far = Figure().subplots(1, 2)
    for axes, values in ((near, [1.0, 10.0]), (far, [1.0, 100.0])):
        axes.plot(values)
        scale_to(axes, values)
    assert near.get_yscale() == "linear"
    assert near.get_ylim()[0] == 0
    assert far.get_yscale() == "log"
