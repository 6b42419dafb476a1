"""What a check leaves for machines: JUnit XML for any CI, Markdown for a GitHub step summary."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree as ET

from marsbench.errors import ResultsError
from marsbench.report.check import HEADINGS, CheckedMetric, loud_rows, told

MOST_ROWS = 200
"""Rows of a summary; GitHub cuts it off at a megabyte."""


def summary_line(rows: Sequence[CheckedMetric]) -> str:
    """How many rows went how."""
    counts = Counter(row.outcome.value for row in rows)
    return ", ".join(f"{count} {outcome}" for outcome, count in sorted(counts.items()))


def markdown(rows: Sequence[CheckedMetric], run: Path, reference: Path) -> str:
    """A heading that says how it went, and a table of all that changed."""
    failed = any(row.outcome.fails for row in rows)
    loud = list(loud_rows(rows))
    lines = [
        f"### marsbench check: {'failed' if failed else 'passed'}",
        "",
        f"`{run}` against `{reference}`: {summary_line(rows)}.",
    ]
    if loud:
        rule = "|".join("---" for _ in HEADINGS)
        lines += ["", f"| {' | '.join(HEADINGS)} |", f"|{rule}|"]
        lines += [f"| {' | '.join(told(row))} |" for row in loud[:MOST_ROWS]]
    if len(loud) > MOST_ROWS:
        lines.append(f"\n… and {len(loud) - MOST_ROWS} more rows")
    return "\n".join(lines) + "\n"


def write_junit(rows: Sequence[CheckedMetric], path: Path) -> None:
    """One test suite, one case a metric of a cell; a failed row is a failure with its numbers."""
    failures = sum(row.outcome.fails for row in rows)
    suite = ET.Element(
        "testsuite",
        name="marsbench check",
        tests=str(len(rows)),
        failures=str(failures),
        errors="0",
    )
    for row in rows:
        case = ET.SubElement(
            suite, "testcase", classname=f"{row.cell}, {row.system}", name=row.metric
        )
        facts = dict(zip(HEADINGS, told(row), strict=True))
        if row.outcome.fails:
            text = f"{row.metric} of {row.system} is worse by {facts['worse by']}"
            failure = ET.SubElement(case, "failure", message=text, type=row.outcome.value)
            failure.text = "\n".join(f"{name}: {value}" for name, value in facts.items())
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        ET.ElementTree(suite).write(path, encoding="utf-8", xml_declaration=True)
    except OSError as error:
        raise ResultsError(f"--junit {path}: cannot be written: {error.strerror}") from error
