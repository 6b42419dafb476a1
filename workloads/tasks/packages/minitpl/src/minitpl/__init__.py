"""A small template language."""

from minitpl.parser import parse
from minitpl.render import render_nodes


def render(source, **values):
    """The template ``source`` with ``values`` filled in."""
    return render_nodes(parse(source), values)
