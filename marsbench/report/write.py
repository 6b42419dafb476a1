"""Writes a report: every figure as PNG and PDF, and one HTML file that needs nothing else."""

from __future__ import annotations

import importlib
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from matplotlib.figure import Figure

from marsbench.errors import ResultsError, raised_in
from marsbench.registry import table
from marsbench.report.data import SCENARIO, ReportData, load_runs
from marsbench.report.figures import FIGURES
from marsbench.report.interactive import interactive
from marsbench.report.page import Section, page
from marsbench.report.plot import plot
from marsbench.report.style import theme

ORDER = (
    "capacity", "paired_ratios", "latency_vs_load", "goodput_curve", "throughput_vs_latency", "speedup_map",
    "latency_cdf", "breakdown", "slowdown_by_size", "ttft_by_turn", "hit_rate_vs_load",
)  # fmt: skip
"""Figures shown first; any other file in ``figures/`` follows by name."""


FILES_ONLY = ("session_lanes",)
"""Figures that the page has in a better form: its lanes lead to every turn of a session."""


@dataclass(frozen=True, slots=True)
class Written:
    """What ``write_report`` made."""

    html: Path
    figures: list[Path]
    failed: dict[str, str]
    """Name of each figure that raised, and what; the others are drawn."""


def figure_modules() -> dict[str, ModuleType]:
    """Every figure by its file name; its docstring is the question it answers."""

    def position(name: str) -> tuple[int, str]:
        return ORDER.index(name) if name in ORDER else len(ORDER), name

    paths = {**FIGURES, **table("FIGURES")}
    return {
        name: importlib.import_module(paths[name].rpartition(".")[0])
        for name in sorted(paths, key=position)
    }


def question_of(module: ModuleType) -> str:
    """First line of a figure's docstring."""
    return (module.__doc__ or "").strip().splitlines()[0]


def caption_of(module: ModuleType) -> str:
    """What a figure's ``draw`` says that it shows, without when it shows nothing."""
    text = " ".join((module.draw.__doc__ or "").split())
    return text.partition(" None without")[0].partition(" None for")[0]


def write_report(run_dirs: Sequence[Path], out: Path | None = None) -> Written:
    """Draw all figures of the given runs and write ``report.html`` (into the first run's folder,
    or into ``out``).
    """
    data = load_runs(run_dirs)
    folder = run_dirs[0] if out is None else out
    modules = figure_modules()
    varying = [name for name in SCENARIO if data.cells[name].nunique() > 1]
    sections: list[Section] = []
    paths: list[Path] = []
    failed: dict[str, str] = {}
    for scenario, part in data.scenarios():
        suffix = "".join(f"-{_slug(scenario[name])}" for name in varying)
        section = Section(_title(scenario), part, [])
        for name, module in modules.items():
            try:
                drawn = _draw(name, module, part, data.run_ids)
            except Exception as error:  # noqa: BLE001 - a plug-in's figure may raise anything
                failed[name] = _problem(error, module)
                continue
            if drawn is None:
                continue
            inside, png, pdf = drawn
            for kind, content in (("png", png), ("pdf", pdf)):
                path = folder / "figures" / f"{name}{suffix}.{kind}"
                _write(path, content)
                paths.append(path)
            caption = caption_of(module)
            if name not in FILES_ONLY:
                section.figures.append((name, question_of(module), caption, inside))
        sections.append(section)
    html = folder / "report.html"
    _write(html, page(data, sections).encode("utf-8"))
    return Written(html, paths, failed)


def _draw(
    name: str, module: ModuleType, part: ReportData, run_ids: Sequence[str]
) -> tuple[dict[str, Any], bytes, bytes] | None:
    """A figure for the page, as PNG and as PDF; None if the cells do not have what it shows."""
    chart = module.draw(part)
    if chart is None:
        return None
    question = question_of(module)
    with theme():
        png, pdf = _render(plot(chart, question), f"{name}: {question}", run_ids)
    return interactive(chart), png, pdf


def _problem(error: Exception, module: ModuleType) -> str:
    """What a figure raised, at the last place in its own file if it was there."""
    return (
        raised_in(error, lambda frame: frame.f_globals.get("__name__") == module.__name__)
        or f"{type(error).__name__}: {error}"
    )


def _render(figure: Figure, title: str, run_ids: Sequence[str]) -> tuple[bytes, bytes]:
    """PNG and PDF bytes with the run ids in their metadata and without dates."""
    runs = "runs: " + ", ".join(run_ids)
    png, pdf = io.BytesIO(), io.BytesIO()
    figure.savefig(png, format="png", metadata={"Title": title, "Description": runs})
    figure.set_layout_engine("none")  # keep the layout just made: making it again costs as much
    figure.savefig(
        pdf, format="pdf", metadata={"Title": title, "Keywords": runs, "CreationDate": None}
    )
    return png.getvalue(), pdf.getvalue()


def _title(scenario: dict[str, object]) -> str:
    cores = scenario["tool_cores"] or "unlimited"
    return f"{scenario['workload']} on {scenario['profile']} ({scenario['engine']}, {cores} tool cores)"


def _slug(value: object) -> str:
    return re.sub(r"[^A-Za-z0-9.]+", "-", str(value)).strip("-")


def _write(path: Path, content: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    except OSError as error:
        raise ResultsError(
            f"cannot write {path}: {error.strerror or error}; choose another folder with --out"
        ) from error
