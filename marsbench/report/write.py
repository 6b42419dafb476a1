"""Writes a report: every figure as PNG and PDF, and one HTML file that needs nothing else."""

from __future__ import annotations

import base64
import importlib
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from matplotlib.figure import Figure

from marsbench.errors import ResultsError
from marsbench.report.data import SCENARIO, load_runs
from marsbench.report.figures import FIGURES
from marsbench.report.html import Section, page
from marsbench.report.style import theme

ORDER = ("latency_vs_load", "goodput_curve", "latency_cdf", "breakdown", "hit_rate_vs_load")
"""Figures shown first; any other file in ``figures/`` follows by name."""


@dataclass(frozen=True, slots=True)
class Written:
    """What ``write_report`` made."""

    html: Path
    figures: list[Path]


def figure_modules() -> dict[str, ModuleType]:
    """Every figure by its file name; its docstring is the question it answers."""

    def position(name: str) -> tuple[int, str]:
        return ORDER.index(name) if name in ORDER else len(ORDER), name

    names = sorted(FIGURES, key=position)
    return {name: importlib.import_module(FIGURES[name].rpartition(".")[0]) for name in names}


def question_of(module: ModuleType) -> str:
    """First line of a figure's docstring."""
    return (module.__doc__ or "").strip().splitlines()[0]


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
    for scenario, part in data.scenarios():
        suffix = "".join(f"-{_slug(scenario[name])}" for name in varying)
        section = Section(_title(scenario), part, [])
        for name, module in modules.items():
            with theme():
                figure = module.draw(part)
                if figure is None:
                    continue
                png, pdf = _render(figure, f"{name}: {question_of(module)}", data.run_ids)
            for kind, content in (("png", png), ("pdf", pdf)):
                path = folder / "figures" / f"{name}{suffix}.{kind}"
                _write(path, content)
                paths.append(path)
            embedded = base64.b64encode(png).decode("ascii")
            section.figures.append((name, question_of(module), module.draw.__doc__ or "", embedded))
        sections.append(section)
    html = folder / "report.html"
    _write(html, page(data, sections).encode("utf-8"))
    return Written(html, paths)


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
