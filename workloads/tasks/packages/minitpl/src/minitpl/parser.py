"""From tokens to a tree of nodes."""

from __future__ import annotations

from dataclasses import dataclass, field

from minitpl.lexer import TemplateError, Token, lex


@dataclass
class Text:
    """Literal text."""

    text: str


@dataclass
class Expr:
    """A path with filters."""

    path: str
    filters: list[str] = field(default_factory=list)


@dataclass
class If:
    """A condition, and what is shown in either case."""

    test: Expr
    negated: bool
    yes: list
    no: list = field(default_factory=list)


@dataclass
class For:
    """A loop over a value."""

    name: str
    over: Expr
    body: list


def parse(source: str) -> list:
    """The nodes of a template."""
    tokens = list(lex(source))
    nodes, rest = _nodes(tokens, 0, ())
    assert rest == len(tokens)
    return nodes


def expression(text: str, line: int) -> Expr:
    """``path | filter | filter``."""
    parts = [part.strip() for part in text.split("|")]
    if not all(parts):
        raise TemplateError(f"line {line}: empty expression")
    return Expr(parts[0], parts[1:])


def _nodes(tokens: list[Token], at: int, until: tuple[str, ...]) -> tuple[list, int]:
    nodes: list = []
    while at < len(tokens):
        token = tokens[at]
        word = token.text.split(" ")[0]
        if token.kind == "text":
            nodes.append(Text(token.text))
            at += 1
        elif token.kind == "expr":
            nodes.append(expression(token.text, token.line))
            at += 1
        elif word in until:
            return nodes, at
        elif word == "if":
            node, at = _if(tokens, at)
            nodes.append(node)
        elif word == "for":
            node, at = _for(tokens, at)
            nodes.append(node)
        else:
            raise TemplateError(f"line {token.line}: unknown tag {word!r}")
    if until:
        raise TemplateError(f"{until[-1]} is missing")
    return nodes, at


def _if(tokens: list[Token], at: int) -> tuple[If, int]:
    words = tokens[at].text.split()
    negated = len(words) > 1 and words[1] == "not"
    test = expression(" ".join(words[2:] if negated else words[1:]), tokens[at].line)
    yes, at = _nodes(tokens, at + 1, ("else", "endif"))
    no: list = []
    if tokens[at].text == "else":
        no, at = _nodes(tokens, at + 1, ("endif",))
    return If(test, negated, yes, no), at + 1


def _for(tokens: list[Token], at: int) -> tuple[For, int]:
    words = tokens[at].text.split()
    if len(words) != 4 or words[2] != "in":
        raise TemplateError(f"line {tokens[at].line}: expected 'for NAME in PATH'")
    body, end = _nodes(tokens, at + 1, ("endfor",))
    return For(words[1], expression(words[3], tokens[at].line), body), end + 1
