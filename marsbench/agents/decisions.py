"""What agents decided, and whether two runs decided the same: the proof of a scripted run.

A session's decisions are the requests it made of the model, as the roles of their messages, and the tool
calls that followed, as names and arguments. Times, lengths of outputs and results of tools are no
decisions: they may differ between two runs of the same agents.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

from marsbench.errors import ResultsError

FILE = "decisions.jsonl"
FOLDER = "agents"
"""Of a run folder."""


class Decision(NamedTuple):
    """One thing an agent did."""

    turn: int
    kind: str
    """``request`` or the name of a tool."""
    what: str
    """Roles of the request's messages, or the call's arguments."""

    def __str__(self) -> str:
        return f"turn {self.turn}: {self.kind} {self.what}"


class Difference(NamedTuple):
    """Where two runs part, for one session."""

    session: str
    position: int
    """Of the first decision that differs."""
    first: Decision | None
    """In the first run; None: it made none any more."""
    second: Decision | None

    def sentence(self) -> str:
        """For a reader."""
        shown = [
            "nothing more" if side is None else str(side) for side in (self.first, self.second)
        ]
        return f"{self.session}, decision {self.position}: {shown[0]} | {shown[1]}"


class Agreement(NamedTuple):
    """How two runs compare."""

    sessions: int
    decisions: int
    """Equal ones."""
    differences: tuple[Difference, ...]
    """The first of each session that has one."""
    only_one: tuple[str, ...]
    """Sessions that only one of the runs had."""

    @property
    def same(self) -> bool:
        """Whether every session decided the same in both."""
        return not self.differences and not self.only_one


Decisions = Mapping[str, Sequence[Decision]]
"""By session."""


def write_decisions(path: Path, decisions: Decisions) -> None:
    """One line a session."""
    lines = [
        json.dumps({"session_id": session, "decisions": list(made)}, ensure_ascii=False)
        for session, made in sorted(decisions.items())
    ]
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")


def read_decisions(path: Path) -> dict[str, list[Decision]]:
    """What ``write_decisions`` wrote; ResultsError if there is none."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        rows: list[dict[str, Any]] = [json.loads(line) for line in lines]
        return {row["session_id"]: [Decision(*made) for made in row["decisions"]] for row in rows}
    except FileNotFoundError:
        raise ResultsError(
            f"{path}: no decisions; only runs of --driver openhands have them"
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise ResultsError(f"{path}: cannot be read: {error}") from error


def compare_decisions(one: Decisions, other: Decisions) -> Agreement:
    """Session by session, decision by decision."""
    equal = 0
    differences = []
    both = sorted(one.keys() & other.keys())
    for session in both:
        for index, (left, right) in enumerate(zip_longest(one[session], other[session])):
            if left != right:
                differences.append(Difference(session, index, left, right))
                break
            equal += 1
    only_one = tuple(sorted(one.keys() ^ other.keys()))
    return Agreement(len(both), equal, tuple(differences), only_one)


def compare_runs(one: Path, other: Path) -> dict[str, Agreement]:
    """Cell -> agreement, of the cells of live agents that two run folders share."""
    shared = [name for name in _cells(one) if (other / FOLDER / name / FILE).is_file()]
    if not shared:
        raise ResultsError(f"{one} and {other} share no cell of live agents")
    return {name: _compared(one, name, other, name) for name in shared}


def compare_systems(run: Path) -> dict[str, Agreement]:
    """``A | B`` -> agreement of cells of live agents in a run folder that had the same sessions, as the
    systems of a seed have: the first of them with each of the others. A cell whose sessions no other
    had is compared with the first of all.
    """
    first, *others = _cells(run)
    if not others:
        raise ResultsError(f"{run}: has one cell of live agents only; name another run beside it")
    alike: dict[frozenset[str], list[str]] = {}
    for name in (first, *others):
        alike.setdefault(frozenset(read_decisions(run / FOLDER / name / FILE)), []).append(name)
    pairs = [(names[0], name) for names in alike.values() for name in names[1:]]
    pairs += [(first, names[0]) for names in alike.values() if len(names) == 1 and names != [first]]
    return {f"{one} | {other}": _compared(run, one, run, other) for one, other in pairs}


def _cells(run: Path) -> list[str]:
    found = sorted(path.parent.name for path in (run / FOLDER).glob(f"*/{FILE}"))
    if not found:
        raise ResultsError(f"{run}: no cells of live agents; they come from --driver openhands")
    return found


def _compared(one: Path, cell: str, other: Path, other_cell: str) -> Agreement:
    return compare_decisions(
        read_decisions(one / FOLDER / cell / FILE),
        read_decisions(other / FOLDER / other_cell / FILE),
    )
