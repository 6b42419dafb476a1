"""Splits a template into text, expressions and tags."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple


class Token(NamedTuple):
    """A piece of a template."""

    kind: str
    text: str
    line: int


class TemplateError(ValueError):
    """The template cannot be read."""


CLOSING = {"{{": "}}", "{%": "%}", "{#": "#}"}
KINDS = {"{{": "expr", "{%": "tag"}


def lex(source: str) -> Iterator[Token]:
    """Tokens in order; comments are left out."""
    at = 0
    line = 1
    while at < len(source):
        start = _next_opening(source, at)
        if start > at:
            yield Token("text", source[at:start], line)
            line += source.count("\n", at, start)
        if start == len(source):
            return
        opening = source[start : start + 2]
        end = source.find(CLOSING[opening], start + 2)
        if end < 0:
            raise TemplateError(f"line {line}: {opening} is never closed")
        if opening in KINDS:
            yield Token(KINDS[opening], source[start + 2 : end].strip(), line)
        line += source.count("\n", start, end)
        at = end + 2


def _next_opening(source: str, at: int) -> int:
    found = [source.find(opening, at) for opening in CLOSING]
    return min([place for place in found if place >= 0], default=len(source))
