"""Tables for papers and notebooks: CSV with every number, Markdown and LaTeX as they are printed.

``cells`` has one row a cell with every metric and is CSV only. ``results``, ``ratios`` and, of a
capacity search, ``capacity`` are what ``report``, ``compare`` and ``capacity`` print; in Markdown and
LaTeX the best value of each load is bold.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd

from marsbench.errors import ResultsError
from marsbench.report import compare
from marsbench.report.capacity import capacity_table, rows_of
from marsbench.report.data import ReportData
from marsbench.report.table import COLUMNS, best_of, headings, report_rows, text_cells

FOLDER = "tables"
COLUMNS_OF_TEXT = 4
"""Key columns of the results table."""

Bold = Collection[tuple[int, int]]


@dataclass(frozen=True, slots=True)
class ReportTable:
    """One table."""

    name: str
    caption: str
    frame: pd.DataFrame
    """Numbers as they are."""
    header: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    """As printed; empty if the table is for machines only."""
    num_text: int = 1
    """Columns from the left that are no numbers."""
    bold: Bold = frozenset()
    """(row, column) of the best values."""


def report_tables(data: ReportData) -> Iterator[ReportTable]:
    """Every table of these cells."""
    yield ReportTable("cells", "Every metric of every cell", data.cells.drop(columns="run"))
    yield _results(data)
    if len(data.systems) > 1:
        yield _ratios(data)
    for found in data.searches:
        rows = rows_of(found)
        header, texts = capacity_table(rows, closed=found["loop"] == "closed")
        places = [row.scenario for row in rows]
        if len(set(places)) > 1:
            header = ["deployment", *header]
            texts = [[place, *text] for place, text in zip(places, texts, strict=True)]
        caption = f"Sustained with {found['slo']}; 95 % intervals, Student's t over seeds"
        frame = pd.json_normalize([asdict(row) for row in rows])
        name = "capacity" if len(data.searches) == 1 else f"capacity-{found['run_id']}"
        yield ReportTable(name, caption, frame, header, texts, num_text=len(header) - 10)


def write_tables(data: ReportData, folder: Path) -> list[Path]:
    """Write all tables into ``folder/tables`` and return the files."""
    paths = []
    for found in report_tables(data):
        texts = {"csv": found.frame.to_csv(index=False, lineterminator="\n")}
        if found.rows:
            texts |= {"md": to_markdown(found), "tex": to_latex(found)}
        for kind, text in texts.items():
            path = folder / FOLDER / f"{found.name}.{kind}"
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text, encoding="utf-8")
            except OSError as error:
                raise ResultsError(
                    f"cannot write {path}: {error.strerror or error}; choose another folder with --out"
                ) from error
            paths.append(path)
    return paths


def to_markdown(found: ReportTable) -> str:
    """The caption and a table as GitHub renders it."""

    def cell(text: str, *, strong: bool = False) -> str:
        shown = text.replace("|", "\\|").replace("\n", " ")
        return f"**{shown}**" if strong and shown else shown

    rule = ["---" if k < found.num_text else "--:" for k in range(len(found.header))]
    lines = [[cell(name) for name in found.header], rule]
    for k, row in enumerate(found.rows):
        lines.append([cell(text, strong=(k, c) in found.bold) for c, text in enumerate(row)])
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"{found.caption}.\n\n{table}\n"


def to_latex(found: ReportTable) -> str:
    """A floating table in the manner of booktabs, for LaTeX to input; plain ASCII but for letters that
    every LaTeX since 2018 reads.
    """
    columns = "l" * found.num_text + "r" * (len(found.header) - found.num_text)
    lines = [
        "% needs \\usepackage{booktabs}",
        "\\begin{table}",
        "  \\centering",
        f"  \\caption{{{escape_latex(found.caption)}.}}",
        f"  \\label{{tab:{found.name}}}",
        f"  \\begin{{tabular}}{{{columns}}}",
        "    \\toprule",
        f"    {' & '.join(map(escape_latex, found.header))} \\\\",
        "    \\midrule",
    ]
    for k, row in enumerate(found.rows):
        cells = [escape_latex(text) for text in row]
        cells = [f"\\textbf{{{c}}}" if (k, at) in found.bold else c for at, c in enumerate(cells)]
        lines.append(f"    {' & '.join(cells)} \\\\")
    return "\n".join([*lines, "    \\bottomrule", "  \\end{tabular}", "\\end{table}", ""])


_LATEX = str.maketrans({
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", "–": "--", "×": r"$\times$",
    "α": r"$\alpha$", "≤": r"$\leq$", "≥": r"$\geq$", "\n": " ",
})  # fmt: skip


def escape_latex(text: str) -> str:
    """Text that LaTeX prints as it stands here."""
    return text.translate(_LATEX)


def _results(data: ReportData) -> ReportTable:
    rows = report_rows(data)
    header = headings()
    metrics = [column.metric for column in COLUMNS]
    best = {(k, COLUMNS_OF_TEXT + metrics.index(metric)) for k, metric in best_of(rows)}
    caption = "Means over seeds, of the mean latency with its lowest and highest seed"
    texts = [text_cells(row) for row in rows]
    return ReportTable("results", caption, pd.DataFrame(rows), header, texts, COLUMNS_OF_TEXT, best)


def _ratios(data: ReportData) -> ReportTable:
    found = compare.compare_systems(data)
    header, texts = compare.comparison_rows(found)
    caption = (
        f"Paired ratios to {found[0].baseline}, above 1 is better; 95 % intervals, Student's t over "
        "seeds of log ratios"
    )
    sure = {
        (k, header.index("ratio")) for k, entry in enumerate(found)
        if entry.significant and not entry.unstable
    }  # fmt: skip
    frame = pd.DataFrame([entry.to_json() for entry in found])
    return ReportTable("ratios", caption, frame, header, texts, compare.NUM_TEXT, sure)
