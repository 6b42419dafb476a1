"""Tables as CSV, Markdown and LaTeX: what is in them, and that other programs read them."""

from __future__ import annotations

import io
import json
import re
from dataclasses import replace

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from marsbench.cli import main
from marsbench.report.data import load_runs
from marsbench.report.export import ReportTable, escape_latex, report_tables, to_latex, to_markdown
from marsbench.report.table import best_of, report_rows

AWKWARD = r"50 % of a_b & c|d {e} #1 $2 ~x ^y \z <= 3 – × α"


@pytest.fixture(scope="module")
def run(make_run):
    return make_run({"vllm": 3.0, "mars": 1.0}, loads=(0.3, 0.9), seeds=(0, 1, 2), num_sessions=8)


def table(**more):
    given = {"name": "t", "caption": "95 % of it", "frame": pd.DataFrame(), "header": ["system", "a | b"],
             "rows": [["x_y", AWKWARD], ["z", "1"]], "bold": {(1, 1)}}  # fmt: skip
    return ReportTable(**{**given, **more})


def unescaped(text):
    """What LaTeX would print, for the commands that ``escape_latex`` uses."""
    words = {"textbackslash": "\\", "textasciitilde": "~", "textasciicircum": "^", "textless": "<",
             "textgreater": ">", "textbar": "|"}  # fmt: skip
    signs = {r"$\times$": "×", r"$\alpha$": "α", r"$\leq$": "≤", r"$\geq$": "≥"}
    pattern = r"\\(text[a-z]+)\{\}|\\([&%$#_{}])|(\$\\[a-z]+\$)|(--)|([^\\&%$#_{}~^<>|])"
    found = []
    at = 0
    for match in re.finditer(pattern, text):
        assert match.start() == at, f"unescaped {text[at]!r} in {text!r}"
        word, sign, math, dash, plain = match.groups()
        found.append(
            words[word] if word else sign or (signs[math] if math else "–" if dash else plain)
        )
        at = match.end()
    assert at == len(text)
    return "".join(found)


@given(st.text(st.characters(codec="ascii", exclude_characters="\n\r\x00"), max_size=40))
def test_latex_prints_the_text(text):
    """Whatever ASCII is escaped, LaTeX reads it back as it was, and no special character is bare."""
    if "--" not in text:  # which LaTeX sets as a dash
        assert unescaped(escape_latex(text)) == text


def test_latex_is_a_table_of_booktabs():
    """As many cells a row as columns, texts left and numbers right, the best bold, groups balanced."""
    text = to_latex(table())
    body = text.split("\\midrule\n")[1].split("    \\bottomrule")[0].splitlines()
    cells = [re.split(r"(?<!\\) & ", line.strip().removesuffix(" \\\\")) for line in body]
    assert [len(row) for row in cells] == [2, 2]
    assert unescaped(cells[0][1]) == AWKWARD
    assert cells[1][1] == "\\textbf{1}"
    assert "\\begin{tabular}{lr}" in text
    assert text.count("\\begin{") == text.count("\\end{") == 2
    bare = re.sub(r"\\[{}]", "", text)
    assert bare.count("{") == bare.count("}")
    assert "\\caption{95 \\% of it.}" in text


def test_markdown_keeps_its_columns():
    """A bar inside a cell does not end it; numbers are to the right."""
    caption, _, header, rule, first, second = to_markdown(table()).splitlines()
    assert caption == "95 % of it."
    assert header == r"| system | a \| b |"
    assert rule == "| --- | --: |"
    assert len(re.split(r"(?<!\\)\|", first)) == 4
    assert second == "| z | **1** |"


def test_tables_have_what_commands_print(run, capsys):
    """CSV holds the numbers of ``report --json`` and of ``compare --json``; ``cells`` every metric."""
    found = {one.name: one for one in report_tables(load_runs([run]))}
    assert list(found) == ["cells", "results", "ratios"]
    with pytest.raises(SystemExit):
        main(["compare", str(run), "--json"])
    compared = json.loads(capsys.readouterr().out)["comparisons"]
    frame = pd.read_csv(io.StringIO(found["ratios"].frame.to_csv(index=False)))
    assert frame["ratio"].tolist() == pytest.approx([entry["ratio"] for entry in compared])
    assert len(found["results"].rows) == 4
    cells = found["cells"].frame
    assert len(cells) == 12
    assert {"session_latency_s.p99", "slo_attainment.3", "seed", "system"} <= set(cells)


def test_the_best_of_each_load_is_bold(run):
    """MARS, three times as fast here, is bold in the latency of each load, whatever its name."""
    found = next(t for t in report_tables(load_runs([run])) if t.name == "results")
    column = found.header.index("latency s")
    bold = [found.rows[row][3] for row, at in sorted(found.bold) if at == column]
    assert bold == ["mars", "mars"]


def test_the_best_is_found_scenario_by_scenario_and_among_equals(run):
    """The same load of another workload is no rival; what is printed alike is best alike."""
    data = load_runs([run])
    slower = data.cells.assign(workload="other")
    slower["session_latency_s.mean"] *= 100
    rows = report_rows(replace(data, cells=pd.concat([data.cells, slower], ignore_index=True)))
    best = best_of(rows)
    winners = [(rows[k]["workload"], rows[k]["system"]) for k, name in sorted(best)
               if name == "session_latency_s.mean"]  # fmt: skip
    assert sorted(winners) == [("other", "mars")] * 2 + [("swe", "mars")] * 2
    for k, row in enumerate(rows[:3]):
        row["session_latency_s.mean"] = (1.0, 1.0001, 2.0)[k]
        row |= {"workload": "one", "load": 0.3, "rate_per_s": 0.15}
    column = {k for k, name in best_of(rows[:3]) if name == "session_latency_s.mean"}
    assert column == {0, 1}


def test_report_writes_them(run, tmp_path, capsys):
    """``marsbench report RUN --tables``: three kinds of each table, and CSV alone of the cells."""
    with pytest.raises(SystemExit) as stopped:
        main(["report", str(run), "--tables", "--no-figures", "--out", str(tmp_path / "out")])
    assert stopped.value.code == 0
    names = {path.name for path in (tmp_path / "out/tables").iterdir()}
    assert names == {"cells.csv", *(f"{name}.{kind}" for name in ("results", "ratios")
                                    for kind in ("csv", "md", "tex"))}  # fmt: skip
    assert "wrote 7 files into" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit) as stopped:
        main(["report", str(run), "--tables", "--no-figures", "--out", str(tmp_path / "file")])
    assert stopped.value.code == 2
    assert "choose another folder" in capsys.readouterr().err
