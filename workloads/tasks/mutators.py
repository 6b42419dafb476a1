"""Bugs put into source code by procedure: each mutator changes one expression of one line.

A mutation is a choice among all places a file has for all mutators, drawn with a seed, so that the same
seed puts the same bug into the same file on every machine.
"""

from __future__ import annotations

import ast
import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass

SWAPPED_COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.In: ast.NotIn,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
}
SWAPPED_OPERATORS: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Add,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv,
}
MAX_CONSTANT = 1000


@dataclass(frozen=True, slots=True)
class Mutation:
    """One bug."""

    mutator: str
    line: int
    """From 1."""
    before: str
    """The line as it should be, without its end."""
    after: str
    """The line with the bug."""

    def apply(self, source: str) -> str:
        """The file with the bug."""
        return _with_line(source, self.line, self.before, self.after)

    def undo(self, source: str) -> str:
        """The file without it."""
        return _with_line(source, self.line, self.after, self.before)


def mutations(source: str) -> list[Mutation]:
    """All bugs that can be put into a file, in order of place."""
    lines = source.splitlines()
    found = []
    for node in ast.walk(ast.parse(source)):
        for name, mutate in MUTATORS.items():
            for changed in mutate(node):
                mutation = _on_its_line(name, node, changed, lines)
                if mutation is not None:
                    found.append(mutation)
    unique = {(m.line, m.after): m for m in found}
    return sorted(unique.values(), key=lambda m: (m.line, m.after, m.mutator))


def _on_its_line(name: str, node: ast.AST, changed: ast.AST, lines: list[str]) -> Mutation | None:
    """The mutation of a node that stands on one line; None for others."""
    assert isinstance(node, ast.expr | ast.stmt)
    if node.lineno != node.end_lineno:
        return None
    before = lines[node.lineno - 1]
    encoded = before.encode()
    text = ast.unparse(changed)
    if isinstance(node, ast.BoolOp | ast.Compare | ast.BinOp) and _in_brackets(encoded, node):
        text = f"({text})"
    after = (encoded[: node.col_offset] + text.encode() + encoded[node.end_col_offset :]).decode()
    try:
        ast.parse(after.strip() + ("\n    pass" if after.rstrip().endswith(":") else ""))
    except SyntaxError:
        if not after.strip().startswith(
            ("elif", "else", "except", "return", "yield", ")", "]", "}")
        ):
            return None
    return Mutation(name, node.lineno, before, after) if after != before else None


def _in_brackets(line: bytes, node: ast.expr) -> bool:
    """Whether an operand of something else: unparse leaves the brackets around it out."""
    return line[node.col_offset : node.col_offset + 1] == b"("


def _swap_comparison(node: ast.AST) -> Iterator[ast.AST]:
    if isinstance(node, ast.Compare) and len(node.ops) == 1:
        swapped = SWAPPED_COMPARISONS.get(type(node.ops[0]))
        if swapped is not None:
            changed = copy.deepcopy(node)
            changed.ops = [swapped()]
            yield changed


def _swap_operator(node: ast.AST) -> Iterator[ast.AST]:
    if isinstance(node, ast.BinOp) and type(node.op) in SWAPPED_OPERATORS:
        changed = copy.deepcopy(node)
        changed.op = SWAPPED_OPERATORS[type(node.op)]()
        yield changed


def _off_by_one(node: ast.AST) -> Iterator[ast.AST]:
    if isinstance(node, ast.Constant) and type(node.value) is int and node.value < MAX_CONSTANT:
        yield ast.Constant(node.value + 1)


def _other_logic(node: ast.AST) -> Iterator[ast.AST]:
    if isinstance(node, ast.BoolOp):
        changed = copy.deepcopy(node)
        changed.op = ast.Or() if isinstance(node.op, ast.And) else ast.And()
        yield changed
        if len(node.values) == 2:
            yield copy.deepcopy(node.values[0])


def _no_negation(node: ast.AST) -> Iterator[ast.AST]:
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        yield copy.deepcopy(node.operand)


def _swap_arguments(node: ast.AST) -> Iterator[ast.AST]:
    if isinstance(node, ast.Call) and len(node.args) == 2 and not node.keywords:
        changed = copy.deepcopy(node)
        changed.args.reverse()
        yield changed


def _other_end(node: ast.AST) -> Iterator[ast.AST]:
    """``min`` for ``max``, and the other way round."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        other = {"min": "max", "max": "min"}.get(node.func.id)
        if other:
            changed = copy.deepcopy(node)
            assert isinstance(changed.func, ast.Name)
            changed.func.id = other
            yield changed


MUTATORS: dict[str, Callable[[ast.AST], Iterator[ast.AST]]] = {
    "comparison": _swap_comparison,
    "operator": _swap_operator,
    "off-by-one": _off_by_one,
    "logic": _other_logic,
    "negation": _no_negation,
    "arguments": _swap_arguments,
    "min-max": _other_end,
}


def _with_line(source: str, number: int, old: str, new: str) -> str:
    lines = source.splitlines(keepends=True)
    if lines[number - 1].rstrip("\n") != old:
        raise ValueError(f"line {number} is not {old!r}")
    lines[number - 1] = new + "\n"
    return "".join(lines)
