"""``marsbench sensitivity``: what it prints and writes, and how it refuses."""

from __future__ import annotations

import json

import pandas as pd
import pytest

from marsbench.cli import main
from marsbench.cli.sensitivity import values
from marsbench.errors import ConfigError


@pytest.fixture
def cli(tmp_path, monkeypatch, capsys):
    """cli(words) -> (status, stdout, stderr) in a folder with a trace of eight small sessions."""
    turns = [{"new_input_tokens": 900, "output_tokens": 20, "tools": [
        {"name": "bash", "class": "script", "wall_s": 0.5}]}] * 3  # fmt: skip
    lines = [{"trace_version": 1, "session_id": f"s{k}", "turns": turns} for k in range(8)]
    (tmp_path / "small.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    monkeypatch.chdir(tmp_path)

    def call(words):
        with pytest.raises(SystemExit) as stopped:
            main(["sensitivity", "-w", "small.jsonl", "--no-cache", "-q", *words.split()])
        return stopped.value.code, *capsys.readouterr()

    return call


RUN = "-s static --rate 1 -n 3 --seeds 3 --param window=1,64"


def test_table_and_file(cli):
    """A row for the default and for each value; the file has the same rows with their places."""
    code, out, err = cli(f"{RUN} --out rows.csv")
    assert (code, err) == (0, "")
    title, header, default, narrow, wide = out.splitlines()
    assert title.startswith("small.jsonl at 1 sessions/s on ")
    assert header.split()[:3] == ["parameter", "value", "mean"]
    assert default.split()[0] == "default"
    assert wide.split() == ["window", "64", default.split()[1], "1.000", "1.000-1.000", "1.000"]
    assert float(narrow.split()[3]) > 1
    rows = pd.read_csv("rows.csv")
    assert list(rows["parameter"]) == ["default", "window", "window"]
    assert list(rows["ratio"])[::2] == [1, 1]
    assert set(rows["pairs"]) == {9}


def test_json_and_few_seeds(cli):
    """--json prints rows and nothing else; one seed is warned of beside it."""
    code, out, err = cli(f"{RUN} --seeds 1 --json")
    assert code == 0
    assert [row["value"] for row in json.loads(out)["rows"]] == [None, 1, 64]
    assert err.startswith("warning: fewer than 3 seeds")
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("-s statc", "unknown system 'statc'; did you mean 'static'"),
        ("-s static --param windw=1", "did you mean 'window'"),
        ("-s static --param window", "expected NAME=VALUE,VALUE"),
        ("-s static --out no/rows.csv", "no such folder no"),
        ("-s static --jobs many", "expected a number of processes"),
        ("-s static-best", "give 'static'"),
        ("-s static,vllm", "takes one system"),
    ],
)
def test_mistakes_are_one_line(cli, words, line):
    """Status 2 and one line that says what is wrong, before anything is simulated."""
    code, out, err = cli(f"{words} --rate 1 -n 3")
    assert (code, out) == (2, "")
    assert line in err
    assert len(err.splitlines()) == 1


def test_what_is_finished_is_kept(cli, monkeypatch):
    """When a later place fails, the rows before it are written and the status is 1."""
    from marsbench.experiment import sensitivity

    whole = sensitivity.sensitivity

    def broken(lab, grid):
        yield next(whole(lab, grid))
        raise ConfigError("the second place broke")

    monkeypatch.setattr(sensitivity, "sensitivity", broken)
    code, out, err = cli(f"{RUN} --out rows.csv")
    assert code == 1
    assert "the second place broke; the 3 rows before that are kept" in err
    assert len(out.splitlines()) == 5
    assert len(pd.read_csv("rows.csv")) == 3


def test_values_of_parameters():
    """Whole numbers, numbers, switches and words; a name given twice has the values of both."""
    assert values(["a=1,2.5,true,fcfs", "b=1e3", "a=7"]) == {
        "a": [1, 2.5, True, "fcfs", 7], "b": [1000.0],
    }  # fmt: skip
    for text in ("a", "a=", "=1", "a=1,,2"):
        with pytest.raises(ConfigError, match="expected NAME=VALUE,VALUE"):
            values([text])
