"""Every system looks the same in every figure, and what stands side by side can be told apart."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

import marsbench.report as package
from marsbench.attribution import COMPONENTS
from marsbench.registry import table
from marsbench.report.style import COLORS, COMPONENT_LOOKS, KV_LAYERS, log_ticks, looks, short

DEUTERANOPIA = np.array(
    [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ]
)
"""What full deuteranopia makes of linear RGB (Machado, Oliveira and Fernandes 2009)."""


def lab(color: str, seen_by=None):
    """CIE L*a*b* of a colour, as a colour-blind eye sees it if its matrix is given."""
    rgb = np.array([int(color[k : k + 2], 16) / 255 for k in (1, 3, 5)])
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    if seen_by is not None:
        linear = np.clip(seen_by @ linear, 0, 1)
    to_xyz = np.array(
        [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    )
    x, y, z = np.cbrt(to_xyz @ linear / [0.9505, 1.0, 1.089])
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def test_no_system_is_named_in_the_reports_code():
    """The report knows no system: none is first, bold or on top because of its name."""
    names = set(table("SYSTEMS")) - {"static", "oracle"}  # words of the language, too
    for path in Path(package.__path__[0]).rglob("*"):
        if path.suffix in {".py", ".j2", ".css", ".js"}:
            words = set(
                re.findall(r"""["'`]([a-z][a-z0-9-]+)["'`]""", path.read_text(encoding="utf-8"))
            )
            assert not words & names, path


def test_order_is_the_users():
    """Looks come in the order asked for, whoever is asked about."""
    assert list(looks(["zeta", "vllm", "mars", "alpha"])) == ["zeta", "vllm", "mars", "alpha"]


def test_no_two_systems_look_alike():
    """Colour, marker and line together are unique, for registered and for many unknown systems."""
    names = [*table("SYSTEMS"), *(f"mine-{k}" for k in range(12))]
    drawn = [(look.color, look.marker, look.dash) for look in looks(names).values()]
    assert len(set(drawn)) == len(names)


def test_known_looks_do_not_depend_on_the_company():
    """A registered system keeps its look whatever else is drawn."""
    assert looks(["vllm", "other"])["vllm"] == looks(["mars", "vllm"])["vllm"]


def test_tuned_variants_look_like_their_system():
    """NAME-tuned has NAME's colour and marker with another line."""
    drawn = looks(["autellix", "autellix-tuned", "autellix-best"])
    assert len({look.color for look in drawn.values()}) == 1
    assert len({look.dash for look in drawn.values()}) == 3


def test_the_same_system_in_two_runs_keeps_its_colour():
    """A system of two runs has two lines of one colour."""
    first, second = looks(["vllm @ a", "vllm @ b"]).values()
    assert (first.color, first.marker) == (second.color, second.marker)
    assert first.dash != second.dash


def test_every_latency_component_has_a_look():
    """Components are stacked in the order of the attribution."""
    assert tuple(COMPONENT_LOOKS) == COMPONENTS


@pytest.mark.parametrize("stack", [COMPONENT_LOOKS, KV_LAYERS], ids=["components", "kv"])
def test_neighbours_in_a_stack_can_be_told_apart(stack):
    """Neighbours differ in lightness by 15 (so they do in print without colour) and by ΔE 20 to a
    reader with deuteranopia, whom red and green look alike.
    """
    colors = [look.color for look in stack.values()]
    for one, other in pairwise(colors):
        assert abs(lab(one)[0] - lab(other)[0]) >= 15, (one, other)
        assert np.linalg.norm(lab(one, DEUTERANOPIA) - lab(other, DEUTERANOPIA)) >= 20, (one, other)


def test_colours_of_lines_are_seen_on_light_and_dark_paper():
    """No line is nearly white or nearly black."""
    assert all(35 <= lab(color)[0] <= 75 for color in COLORS)


def test_large_numbers_are_short():
    """Ticks say 20k and 3M."""
    values = [(0.25, "0.25"), (5000, "5000"), (20_000, "20k"), (3e6, "3M"), (2.5e9, "2.5G")]
    assert [short(value) for value, _ in values] == [text for _, text in values]


def test_log_ticks_are_plain_numbers():
    """Two decades: 1, 2, 5; four: powers of ten; a narrow span still has several."""
    assert log_ticks(1, 60) == [1, 2, 5, 10, 20, 50]
    assert log_ticks(1, 10_000) == [1, 10, 100, 1000, 10_000]
    assert len(log_ticks(0.9, 1.6)) >= 3
