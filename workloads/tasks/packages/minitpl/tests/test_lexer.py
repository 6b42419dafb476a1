"""What the lexer promises."""

import pytest
from minitpl.lexer import TemplateError, lex


def kinds(source):
    return [(token.kind, token.text) for token in lex(source)]


def test_pieces():
    assert kinds("a {{ b }}{% if c %}") == [("text", "a "), ("expr", "b"), ("tag", "if c")]


def test_comments_are_left_out():
    assert kinds("a{# no #}b") == [("text", "a"), ("text", "b")]


def test_lines():
    assert [token.line for token in lex("a\n{{ b }}\n\n{{ c }}")] == [1, 2, 2, 4]


def test_never_closed():
    with pytest.raises(TemplateError, match="line 2"):
        list(lex("x\n{{ a"))
