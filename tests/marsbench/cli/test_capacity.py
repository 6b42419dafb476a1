"""``marsbench capacity``: what it prints and writes, what reports make of it, and how it refuses."""

from __future__ import annotations

import json
from html import escape

import pytest

from marsbench.cli import main
from marsbench.report import write

FIGURES = ("capacity", "latency_vs_load")
"""All of them take half a minute of a core to draw, and other tests draw them."""


@pytest.fixture
def cli(tmp_path, monkeypatch, capsys):
    """cli(words) -> (status, stdout, stderr) in a folder with a trace of sixteen sessions."""
    lines = [
        {"trace_version": 1, "session_id": f"s{k}", "turns": [
            {"new_input_tokens": 9000 + 300 * k, "output_tokens": 40, "tools": [
                {"name": "bash", "class": "script", "wall_s": 0.5 + 0.1 * k}]}] * (3 + k % 3)}
        for k in range(16)
    ]  # fmt: skip
    (tmp_path / "small.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    monkeypatch.chdir(tmp_path)
    few = {name: module for name, module in write.figure_modules().items() if name in FIGURES}
    monkeypatch.setattr(write, "figure_modules", lambda: few)

    def call(words, *more):
        with pytest.raises(SystemExit) as stopped:
            main([*words.split(), *more])
        return stopped.value.code, *capsys.readouterr()

    return call


SEARCH = (
    "capacity -w small.jsonl -s vllm,mars -n 16 --seeds 3 --precision 0.2 --no-cache -q --out run"
)
SLO = ("--slo", "p95 slowdown <= 2")


def test_table_file_and_report(cli, tmp_path):
    """A row a system, a sentence a system, a run folder that report draws and compare compares."""
    code, out, err = cli(SEARCH, *SLO)
    assert code == 0, err
    title, header, vllm, mars, _, first, second = out.splitlines()
    assert title.startswith(
        "small on h100-nvl/qwen3-coder-30b-a3b (sim, 8 tool cores), p95 slowdown"
    )
    assert header.split()[:2] == ["system", "sessions/hour"]
    assert (vllm.split()[0], mars.split()[0]) == ("vllm", "mars")
    assert " 0-2 " in mars
    assert first.startswith("  vllm sustains ")
    assert "x of vllm" in second
    found = json.loads((tmp_path / "run/capacity.json").read_text())
    assert found["slo"] == "p95 slowdown <= 2"
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    tried = [t["cell"] for s in found["scenarios"][0]["searches"] for t in s["tried"]]
    assert sorted(tried) == [cell["cell"] for cell in summary["cells"]]

    code, out, err = cli("report run")
    assert code == 0, err
    page = (tmp_path / "run/report.html").read_text()
    assert "How much does each system sustain with p95 slowdown &lt;= 2?" in page
    assert escape(second.strip()) in page
    assert (tmp_path / "run/figures/capacity.png").is_file()
    shown = {line.split()[2] for line in out.splitlines()[1:]}
    assert 1 <= len(shown) < len({cell["rate_per_s"] for cell in summary["cells"]})
    code, out, err = cli("compare run")
    assert code == 0, err

    code, out, _ = cli(f"{SEARCH} --resume --json --baseline mars", *SLO)
    assert code == 0
    rows = json.loads(out)["rows"]
    assert [row["ratio"] is None for row in rows] == [False, True]


def test_agents(cli):
    """--closed-loop counts agents; the report's table says how many were there."""
    code, out, err = cli(f"{SEARCH} --closed-loop --most 40 --seeds 1", *SLO)
    assert code == 0, err
    assert "warning: fewer than 3 seeds" in err
    assert out.splitlines()[1].split()[:2] == ["system", "agents"]
    code, out, err = cli("report run")
    assert code == 0, err
    assert "agents" in out.splitlines()[1]


@pytest.mark.parametrize(
    ("words", "slo", "line"),
    [
        ("", None, "give --slo, for example"),
        ("", "p95 slowdwn <= 3", "did you mean 'slowdown'"),
        ("-s marss", "p95 slowdown <= 3", "did you mean 'mars'"),
        ("--baseline marss", "p95 slowdown <= 3", "did you mean 'mars'"),
        ("--resume", "p95 slowdown <= 3", "--resume needs --out"),
        ("--jobs many", "p95 slowdown <= 3", "expected a number of processes"),
        ("--precision 2", "p95 slowdown <= 3", "sustain.precision"),
        ("--most -1", "p95 slowdown <= 3", "sustain.most"),
        (
            "-c sustain.slow=1",
            "p95 slowdown <= 3",
            "unknown key 'sustain.slow'; did you mean 'slo'",
        ),
    ],
)
def test_mistakes_are_one_line(cli, words, slo, line):
    """Status 2 and one line that says what is wrong, before anything is simulated."""
    start = "capacity -w small.jsonl -s vllm,mars -n 16 --no-cache"
    code, out, err = cli(f"{start} {words}", *(["--slo", slo] if slo else []))
    assert (code, out) == (2, "")
    assert line in err
    assert len(err.splitlines()) == 1
