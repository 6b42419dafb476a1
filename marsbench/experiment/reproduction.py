"""Repeats a published evaluation: every part as a run folder with report and tables, and one page that
holds what was measured against what was published.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from marsbench.config import ExperimentConfig, load_config
from marsbench.errors import ConfigError, MarsbenchError, ResultsError
from marsbench.experiment.lab import Reporter
from marsbench.experiment.runner import RunResult, run_experiment
from marsbench.experiment.study import PublishedStudy
from marsbench.experiment.sustained import find_capacity
from marsbench.report.capacity import rows_of, sentence
from marsbench.report.data import load_runs
from marsbench.report.export import ReportTable, to_latex, to_markdown, write_tables
from marsbench.report.factors import read_factors
from marsbench.report.published import NUM_TEXT, Held, held_table, hold
from marsbench.report.write import write_report
from marsbench.runfolder import read_capacity

PAGE = "reproduction"


@dataclass(frozen=True, slots=True)
class PartOutcome:
    """How one part of a repeated evaluation went."""

    part: str
    folder: Path
    problem: str = ""
    """Why it was not run, or not to its end; empty if it was."""
    held: tuple[Held, ...] = ()
    sentences: tuple[str, ...] = ()
    """What a capacity search found, in words."""
    figures: int = 0


@dataclass(frozen=True, slots=True)
class Repetition:
    """Which parts of a published evaluation are repeated, and how."""

    study: PublishedStudy
    out: Path
    reporter: Reporter
    jobs: int = 1
    cache: Path | None = None
    trace: Path | None = None
    flags: Mapping[str, Any] = field(default_factory=dict)
    """Keys of the experiments that the command line replaces in every part."""

    def config(self, part: str) -> ExperimentConfig:
        """Return the experiment of a part; ConfigError if it replays a trace and there is none."""
        flags = dict(self.flags)
        if self.study.parts[part].trace:
            if self.trace is None:
                raise ConfigError("replays a recorded trace: give one with --trace FILE")
            flags["workload"] = [str(self.trace)]
        return load_config([self.study.file(part)], flags=flags)

    def run(self, part: str) -> PartOutcome:
        """Run a part, or go on with it; what it has, it reports, whatever stopped it."""
        folder = self.out / part
        try:
            config = self.config(part)
            search = run_experiment if config.sustain is None else find_capacity
            result: RunResult = search(
                config,
                folder,
                reporter=self.reporter,
                jobs=self.jobs,
                resume=True,
                cache=self.cache,
            )
        except MarsbenchError as error:
            return PartOutcome(part, folder, str(error))
        if result.interrupted:
            raise KeyboardInterrupt
        problem = ""
        if result.failures:
            cell, why = result.failures[0]
            problem = f"{len(result.failures)} cells failed, first {cell.describe()}: {why}"
        if not result.summary.get("cells"):
            return PartOutcome(part, folder, problem or "no cell was finished")
        written = write_report([folder])
        write_tables(load_runs([folder]), folder)
        return self._judged(part, folder, problem, len(written.figures))

    def _judged(self, part: str, folder: Path, problem: str, figures: int) -> PartOutcome:
        """Hold what a part measured against what was published of it."""
        published = [one for one in self.study.published if one.part == part]
        held: Sequence[Held] = ()
        try:
            held = hold(published, read_factors([folder], self.study.subject)) if published else ()
        except ResultsError as error:
            problem = problem or str(error)
        found = read_capacity(folder)
        said = [] if found is None else [sentence(row, found) for row in rows_of(found)]
        return PartOutcome(part, folder, problem, tuple(held), tuple(said), figures)

    def write(self, outcomes: Sequence[PartOutcome]) -> list[Path]:
        """Write the page as Markdown, and its table as LaTeX and CSV; return the files."""
        held = [one for outcome in outcomes for one in outcome.held]
        header, rows = held_table(held)
        caption = (
            f"Factors of {self.study.subject} over each system, above 1 is better: published, and "
            "measured here as the geometric mean over cells and systems with its 95 % interval over "
            "seeds, and as the lowest and highest cell"
        )
        bold = {
            (k, header.index("verdict")) for k, one in enumerate(held) if one.reached == one.cells
        }
        table = ReportTable(PAGE, caption, _frame(held), header, rows, NUM_TEXT, bold)
        texts = {"md": self._page(outcomes, table)}
        if held:
            texts |= {"tex": to_latex(table), "csv": table.frame.to_csv(index=False)}
        paths = []
        for kind, text in texts.items():
            path = self.out / f"{PAGE}.{kind}"
            try:
                self.out.mkdir(parents=True, exist_ok=True)
                path.write_text(text, encoding="utf-8")
            except OSError as error:
                raise ResultsError(f"cannot write {path}: {error.strerror or error}") from error
            paths.append(path)
        return paths

    def _page(self, outcomes: Sequence[PartOutcome], table: ReportTable) -> str:
        lines = [f"# {self.study.summary}", ""]
        if table.rows:
            lines += ["## Published and measured", "", to_markdown(table)]
        lines += ["## Parts", ""]
        for outcome in outcomes:
            shows = self.study.parts[outcome.part].shows
            place = outcome.part
            if outcome.figures:
                links = f"[report]({place}/report.html), [tables]({place}/tables/results.md)"
                lines.append(f"- **{place}** ({shows}): {links}, {outcome.figures} figure files.")
            else:
                lines.append(f"- **{place}** ({shows}): not run.")
            if outcome.problem:
                lines.append(f"  - {outcome.problem}")
            lines += [f"  - {said}" for said in outcome.sentences]
        return "\n".join(lines) + "\n"


def _frame(held: Sequence[Held]) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {
                **one.published.model_dump(mode="json", exclude={"low", "high", "over"}),
                "over": " ".join(one.published.over),
                "published_low": one.published.low,
                "published_high": one.published.high,
                "factor": one.factor,
                "low": one.low,
                "high": one.high,
                "lowest": one.lowest,
                "highest": one.highest,
                "inside": one.inside,
                "reached": one.reached,
                "cells": one.cells,
                "unstable": one.unstable,
                "verdict": one.verdict,
            }
            for one in held
        ]
    )
