"""One clear line for what is wrong on the command line, in a trace, or in the installation."""

from __future__ import annotations

import gzip
import json
import sys

import pytest
from command_line import RUN, one_line, session_line, write_trace

from marsbench.cli import main


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["rum"], ["unknown command 'rum'; did you mean 'run'?"]),
        (["run", "--sesions", "3"], ["No such option: --sesions"]),
        (["run", "--sessions", "few"], ["--sessions", "integer"]),
        (["run", "--system", "marz"], ["unknown system 'marz'", "known:"]),
        (["run", "--workload", "swe-bensh"], ["did you mean 'swe-bench'?"]),
        (["run", "--workload", "no/such.jsonl"], ["no/such.jsonl", "no such file"]),
        (["run", "--engine", "simm"], ["did you mean 'sim'?"]),
        (["run", "--profile", "h100"], ["unknown profile 'h100'"]),
        (["run", "--tools", "real"], ["unknown tool model 'real'"]),
        (["run", "--split", "half"], ["split:", "'all', 'tuning' or 'reporting'"]),
        (["run", "--driver", "repley"], ["driver", "replay"]),
        (["run", "--load", "-1"], ["load.0:", "greater than 0"]),
        (["run", "--sessions", "0"], ["sessions:", "greater than or equal to 1"]),
        (["run", "--jobs", "0"], ["--jobs 0", "at least 1"]),
        (["run", "-n", "1e20"], ["--sessions", "integer"]),
        (["run", "-n", "100000000000000000000"], ["sessions:", "less than or equal to 1000000"]),
        (["run", "--seeds", "100000000"], ["seeds:", "less than or equal to 10000"]),
        (["run", "--resume"], ["--resume needs --out DIR"]),
        (["run", "--resume", "--out", "nowhere"], ["nowhere has no config.yaml"]),
        (["run", "-s", "vllm,marz"], ["unknown system 'marz'"]),
        (["run", "-c", "num_block=3"], ["unknown key 'num_block'; did you mean 'num_blocks'?"]),
        (
            ["sensitivity", "--system", "static", "--jobs", "ray"],
            ["--jobs ray", "expected a number"],
        ),
        (["run", "-c", "sessions"], ["expected key=value"]),
        (["run", "missing.yaml"], ["missing.yaml: no such experiment file"]),
        (["list", "sistems"], ["unknown kind 'sistems'; did you mean 'systems'?"]),
        (["validate", "--load", "0.5", "--rate", "1"], ["--load and --rate", "one of them"]),
        (["report", "nowhere"], ["nowhere", "not a run folder"]),
        (["compare", "nowhere"], ["nowhere", "not a run folder"]),
    ],
)
def test_mistakes_on_the_line(cli, arguments, parts):
    """A wrong name, option or value: what, where, what would be right; status 2."""
    one_line(cli(*arguments), *parts)


def test_debug_shows_the_traceback(tmp_path):
    """--debug, anywhere on the line, shows where an error came from."""
    with pytest.raises(Exception, match="unknown system"):
        main(["run", "--system", "marz", "--debug", "--out", str(tmp_path / "out")])


def damaged(lines: list[dict], at: int, **changes) -> list[dict]:
    turn = {**lines[at]["turns"][1], **changes}
    turns = [lines[at]["turns"][0], turn, lines[at]["turns"][2]]
    return [*lines[:at], {**lines[at], "turns": turns}, *lines[at + 1 :]]


def test_wrong_type_in_a_late_line(cli, tmp_path):
    """Line 40,001 of a trace is found by its number, with the field and what it must hold."""
    good = json.dumps(session_line(0))
    bad = json.dumps(damaged([session_line(0)], 0, output_tokens="many")[0])
    path = tmp_path / "long.jsonl"
    with path.open("w") as file:
        for k in range(40_002):
            file.write((bad if k == 40_000 else good).replace('"s0"', f'"s{k}"') + "\n")
    one_line(cli(*RUN, "-w", path), "long.jsonl:40001", "output_tokens")


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"new_input_tokens": -5}, ["bad.jsonl:3", "new_input_tokens"]),
        ({"output_tokens": -1}, ["bad.jsonl:3", "output_tokens"]),
        ({"tools": [{"name": "x", "class": "test", "wall_s": -2.0}]}, ["bad.jsonl:3", "wall_s"]),
    ],
)
def test_negative_numbers_in_a_trace(cli, tmp_path, changes, parts):
    """Negative tokens and times are refused with file, line and field."""
    lines = damaged([session_line(k) for k in range(4)], 2, **changes)
    one_line(cli(*RUN, "-w", write_trace(tmp_path / "bad.jsonl", lines)), *parts)


def test_truncated_gzip(cli, tmp_path):
    """A download that was cut off is named as such."""
    text = "".join(json.dumps(session_line(k)) + "\n" for k in range(3000))
    whole = gzip.compress(text.encode())
    path = tmp_path / "cut.jsonl.gz"
    path.write_bytes(whole[: len(whole) // 2])
    one_line(cli(*RUN, "-w", path), "cut.jsonl.gz")


@pytest.mark.parametrize("content", ["", "\n\n"])
def test_trace_without_sessions(cli, tmp_path, content):
    """Zero sessions are no experiment."""
    path = tmp_path / "empty.jsonl"
    path.write_text(content)
    one_line(cli(*RUN, "-w", path), "empty.jsonl")


@pytest.mark.parametrize(
    ("arguments", "module", "what"),
    [
        (["calibrate", "--engine", "openai", "-c", "url=http://x"], "aiohttp", "calibrate needs"),
        (["validate", "--engines", "sim,openai", "-c", "url=http://x"], "aiohttp", "validate"),
        (["validate", "--engines", "sim,vllm"], "zmq", "validate --engines sim,vllm needs"),
        (["watch", "tcp://127.0.0.1:1"], "zmq", "watch needs"),
        (["serve", "-u", "http://x"], "starlette", "gateway needs"),
    ],
)
def test_missing_extra_is_one_line(cli, monkeypatch, arguments, module, what):
    """A command whose optional packages are not installed names them and the way to install them."""
    monkeypatch.setitem(sys.modules, module, None)
    one_line(cli(*arguments), what, module, "pip install -e")
