"""The answer of study.py in words and tables."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

MATTERS = 0.01
"""Smaller changes of regret are none, however certain."""
TELLS = 0.05
"""A share of variance or of wait must surely be more than this to be called a gain."""
ROWS = ("no name", "name", "name, shrunk", "class", "class, shrunk")

HEAD = """# What the name of a tool tells about a call

Made by `study.py` beside this page; all numbers are in `tool_names.json`. Everything is out of
fold (a call is predicted from other sessions only), brackets are 95 % bootstrap intervals over
sessions. *Name* is what a client calls the tool (all shell commands share one), *class* is its kind
(a shell call by its command: test, build, script, git, ...); *shrunk* mixes a tool's own calls with
all calls as MARS's gap model does. Durations of generated workloads are drawn by class, so that
there the class must help: only recorded traces can answer the question.
"""
COLUMNS = """
Columns: *error* = mean absolute error of the log of what remains of a call, before it starts and
after it has run 1 s and 5 s, each told the elapsed time; *explained* = share of the variance of log
duration; *regret at b* = regret of the best learned deadline for holding a KV cache whose loss costs
b seconds, against one deadline for all calls (below 0: better); *dispatch* = share of the avoidable
wait that is avoided where two calls compete for a slot (first come first served: 0).
"""


def text(results: Sequence[dict[str, Any]]) -> str:
    """The whole report, in Markdown."""
    measured = [result for result in results if result["kind"] == "recorded"]
    short = [in_short(result) + "\n" for result in measured]
    parts = [HEAD, "## Answer\n", *short, *(f"- {answer(result)}" for result in results), COLUMNS]
    parts += [section(result) for result in results]
    return "\n".join(parts)


def in_short(result: dict[str, Any]) -> str:
    """What follows from one recorded trace, for names; the numbers come after."""
    row = "name, shrunk"
    start = result["prediction"]["0"]["predictors"][row]["variance_explained"]
    later = result["prediction"]["1"]["predictors"]
    rest = later[f"{row} + elapsed"]["variance_explained"] if later else []
    gains = [
        f"{at} s"
        for at, scores in result["retention"].items()
        if verdict(_regret(scores, row)) == "helps"
    ]
    foretold = "tells" if start and start[1] > TELLS else "does not tell"
    added = "more" if rest and rest[1] > TELLS else "nothing more"
    ordered = result["dispatch"][row]
    worth = "is worth using" if ordered and ordered[1] > TELLS else "is of no use"
    deadlines = f"improve holding at b = {', '.join(gains)}" if gains else "do not improve holding"
    return (
        f"In {result['source']} a tool's name {foretold} beforehand whether a call is short or long "
        f"and {worth} for the order in which calls run. Once a call has run 1 s the name says "
        f"{added} than the elapsed time does, and deadlines by name {deadlines} a KV cache over one "
        "deadline for all."
    )


def answer(result: dict[str, Any]) -> str:
    """One source's answer in two sentences, one for names and one for classes."""
    said = [f"**{result['source']}** ({result['kind']}):"]
    for kind in ("name", "class"):
        row = f"{kind}, shrunk"
        start = result["prediction"]["0"]["predictors"][row]["variance_explained"]
        said.append(
            f"the {kind} explains {percent(start)} of the variance of log duration before a"
        )
        said.append("call starts,")
        later = result["prediction"]["1"]["predictors"]
        if later:
            rest = percent(later[f"{row} + elapsed"]["variance_explained"])
            said.append(f"{rest} of what remains once it has run 1 s,")
        waits = percent(result["dispatch"][row])
        said.append(
            f"avoids {waits} of the avoidable wait when the call expected to be shorter runs"
        )
        said.append(
            f"first, and for holding KV caches, against one deadline for all calls, {kept(result, row)}."
        )
    return " ".join(said).replace(". the class", ". The class")


def kept(result: dict[str, Any], row: str) -> str:
    """What deadlines by name or class change, by break-even time."""
    parts = []
    for break_even_s, scores in result["retention"].items():
        change = _regret(scores, row)
        parts.append(f"{verdict(change)} at b = {break_even_s} s ({percent(change, sign=True)})")
    return ", ".join(parts)


def verdict(change: Sequence[float]) -> str:
    """What a change of regret, with its interval, amounts to."""
    if not change:
        return "has nothing to gain"
    value, low, high = change
    if low <= 0 <= high or abs(value) < MATTERS:
        return "makes no difference"
    return "helps" if high < 0 else "hurts"


def section(result: dict[str, Any]) -> str:
    """The table of one source."""
    counted = (
        f"{result['sessions']} sessions, {result['calls']:,} calls, {result['names']} names, "
        f"{result['classes']} classes"
    )
    checksum = f"; SHA-256 `{result['sha256']}`" if "sha256" in result else ""
    columns = _columns(result)
    lines = [
        f"## {result['source']}\n",
        f"{counted}; durations {result['tool_durations']}{checksum}.\n",
        "| told | " + " | ".join(name for name, _ in columns) + " |",
        "|---|" + "---|" * len(columns),
    ]
    lines += [f"| {row} | " + " | ".join(cell(row) for _, cell in columns) + " |" for row in ROWS]
    return "\n".join(lines) + "\n"


def _columns(result: dict[str, Any]) -> list[tuple[str, Callable[[str], str]]]:
    start = result["prediction"]["0"]["predictors"]
    columns: list[tuple[str, Callable[[str], str]]] = [
        ("error", lambda row: _number(start[row]["log_error"])),
        ("explained", lambda row: percent(start[row]["variance_explained"])),
    ]
    for at in ("1", "5"):
        scores = result["prediction"][at]["predictors"]
        if scores:
            columns.append((f"error after {at} s", lambda row, s=scores: _number(_elapsed(s, row))))
    columns += [
        (f"regret at b = {b} s", lambda row, s=scores: percent(_regret(s, row), sign=True))
        for b, scores in result["retention"].items()
    ]
    return [*columns, ("dispatch", lambda row: percent(result["dispatch"][row]))]


def _elapsed(scores: dict[str, Any], row: str) -> list[float]:
    label = "elapsed" if row == ROWS[0] else f"{row} + elapsed"
    return list(scores[label]["log_error"])


def _regret(scores: dict[str, Any], row: str) -> list[float]:
    return list(scores["policies"][f"{row}: deadline"]["regret_change"])


def _number(values: Sequence[float]) -> str:
    value, low, high = values
    return f"{value:.2f} [{low:.2f}, {high:.2f}]"


def percent(values: Sequence[float], *, sign: bool = False) -> str:
    """A share with its interval; a value that is the reference itself has none."""
    if not values:
        return "–"
    value, low, high = (round(100 * number) + 0 for number in values)
    form = "+d" if sign else "d"
    if value == low == high:
        return f"{value:{form}} %"
    return f"{value:{form}} % [{low:{form}}, {high:{form}}]"
