"""From nodes and values to text."""

from __future__ import annotations

from collections.abc import Mapping

from minitpl.parser import Expr, For, If, Text

FILTERS = {
    "upper": lambda value: str(value).upper(),
    "lower": lambda value: str(value).lower(),
    "length": len,
    "title": lambda value: str(value).title(),
    "escape": lambda value: escape(str(value)),
}


def escape(text: str) -> str:
    """Text that HTML shows as it is."""
    for plain, code in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ('"', "&quot;")):
        text = text.replace(plain, code)
    return text


def render_nodes(nodes: list, values: Mapping) -> str:
    """The text of nodes, one after the other."""
    return "".join(_render(node, values) for node in nodes)


def evaluate(expr: Expr, values: Mapping):
    """The value of an expression; a name that is not there is empty."""
    value = values
    for part in expr.path.split("."):
        if isinstance(value, Mapping):
            value = value.get(part, "")
        elif isinstance(value, list | tuple) and part.isdigit():
            value = value[int(part)] if int(part) < len(value) else ""
        else:
            value = getattr(value, part, "")
    for name in expr.filters:
        value = FILTERS[name](value)
    return value


def _render(node, values: Mapping) -> str:
    if isinstance(node, Text):
        return node.text
    if isinstance(node, Expr):
        return str(evaluate(node, values))
    if isinstance(node, If):
        chosen = bool(evaluate(node.test, values)) != node.negated
        return render_nodes(node.yes if chosen else node.no, values)
    assert isinstance(node, For)
    items = list(evaluate(node.over, values) or ())
    parts = []
    for index, item in enumerate(items):
        loop = {"index": index + 1, "first": index == 0, "last": index == len(items) - 1}
        parts.append(render_nodes(node.body, {**values, node.name: item, "loop": loop}))
    return "".join(parts)
