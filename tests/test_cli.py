"""The command line: what each command prints, and one clear line for everything that goes wrong."""

from __future__ import annotations

import gzip
import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from marsbench.cli import COMMANDS, main

ROOT = Path(__file__).resolve().parent.parent


def session_line(k: int, *, prompt_tokens: int = 4000, **changes) -> dict:
    turns = [
        {
            "new_input_tokens": prompt_tokens if turn == 0 else 200,
            "output_tokens": 30,
            "tools": [{"name": "bash", "class": "script", "wall_s": 0.5}],
        }
        for turn in range(3)
    ]
    return {"trace_version": 1, "session_id": f"s{k}", "agent": "t", "model": "t", "turns": turns,
            **changes}  # fmt: skip


def write_trace(path: Path, lines: list[dict]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture
def trace(tmp_path):
    return write_trace(tmp_path / "small.jsonl", [session_line(k) for k in range(12)])


@pytest.fixture
def cli(tmp_path, capsys, monkeypatch):
    """cli("run", ...) -> (exit status, stdout, stderr), with a cache of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.chdir(tmp_path)

    def call(*arguments) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stopped:
            main([str(argument) for argument in arguments])
        printed = capsys.readouterr()
        return int(stopped.value.code or 0), printed.out, printed.err

    return call


def one_line(result: tuple[int, str, str], *parts: str, status: int = 2) -> None:
    """The call failed with one line on stderr that holds all parts, and no data."""
    code, out, err = result
    assert code == status, err
    assert out == ""
    lines = [line for line in err.splitlines() if not line.startswith(("...", "["))]
    assert len(lines) == 1, err
    assert lines[0].startswith("marsbench: ")
    for part in parts:
        assert part in lines[0]


RUN = ("run", "--rate", "0.5", "--sessions", "4", "--split", "all", "--out", "out")


def test_help_is_fast_and_imports_nothing_heavy():
    """`marsbench --help` answers within 0.3 s of CPU time without numpy, pydantic or an engine."""
    code = (
        "import sys, time; from marsbench.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'numpy', 'pandas', 'pydantic', 'yaml', 'torch', 'vllm', 'rich'} & set(sys.modules)\n"
        "print('heavy', sorted(heavy)); print('cpu', time.process_time())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd="/"
    )
    assert "heavy []" in done.stdout
    assert float(done.stdout.split()[-1]) <= 0.3
    for name, (_, summary) in COMMANDS.items():
        assert f"  {name} " in done.stdout
        assert summary.split(".")[0][:40] in done.stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(cli, name):
    """Each row of the table leads to a command that explains itself."""
    code, out, _ = cli(name, "--help")
    assert code == 0
    assert f"Usage: marsbench {name}" in out


def test_version(cli):
    """`--version` is the version of the distribution."""
    from importlib.metadata import version

    assert cli("--version") == (0, f"marsbench {version('marsbench')}\n", "")


def test_run_prints_a_table_and_writes_a_folder(cli, trace):
    """stdout is data, stderr is talk, the folder is where --out says."""
    code, out, err = cli(*RUN, "--workload", trace, "--system", "vllm", "--system", "static")
    assert code == 0
    lines = out.splitlines()
    assert len(lines) == 3
    assert "latency s" in lines[0]
    assert [word in line for word, line in zip(("vllm", "static"), lines[1:], strict=True)]
    assert "[2/2]" in err
    assert "run folder: out" in err
    assert Path("out/summary.json").is_file()


def test_run_json_is_the_summary(cli, trace):
    """--json prints what summary.json holds, and nothing else."""
    code, out, _ = cli(*RUN, "--workload", trace, "--json", "--quiet")
    assert code == 0
    assert json.loads(out) == json.loads(Path("out/summary.json").read_text())


def test_stored_config_repeats_the_run(cli, trace):
    """`marsbench run RUN/config.yaml` gives the same summary but for wall time and run id, from
    another folder too.
    """
    cli(*RUN, "--workload", trace.name, "--seeds", "2")
    os.chdir("/")
    second = trace.parent / "second"
    code, _, _ = cli("run", trace.parent / "out" / "config.yaml", "--out", second)
    assert code == 0
    summaries = []
    for folder in (trace.parent / "out", second):
        text = (folder / "summary.json").read_text()
        kept = [row for row in text.splitlines() if '"wall_s"' not in row and "run_id" not in row]
        summaries.append(kept)
    assert summaries[0] == summaries[1]


def test_flags_replace_loads_of_a_file(cli, trace):
    """--rate on the line replaces the loads of an experiment file; it does not add to them."""
    Path("x.yaml").write_text("load: [0.5, 0.9]\nsplit: all\nsessions: 4\n")
    code, out, _ = cli("run", "x.yaml", "-w", trace, "--rate", "1", "--out", "out", "--json")
    assert code == 0
    assert [cell["rate_per_s"] for cell in json.loads(out)["cells"]] == [1.0]


def test_policy_file_beside_the_user(cli, trace):
    """A policy in the current folder is found by its dotted path, in worker processes too."""
    Path("my_policy.py").write_text(
        "from marsbench.admission.base import Unlimited\n"
        "from marsbench.system import Policies, System\n"
        "class Lifo(Unlimited):\n"
        "    def admit(self, pending, view, now_s):\n"
        "        return list(reversed(pending))\n"
        "LIFO = System('lifo', 'latest first', lambda context: Policies(admission=Lifo()))\n"
    )
    arguments = [*RUN, "-w", trace, "-s", "my_policy.LIFO", "-s", "vllm"]
    code, out, err = cli(*arguments, "--jobs", "2", "--json")
    assert code == 0, err
    assert [cell["system"] for cell in json.loads(out)["cells"]] == ["my_policy.LIFO", "vllm"]


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
        (["run", "--driver", "openhands"], ["driver:", "'replay'"]),
        (["run", "--load", "-1"], ["load.0:", "greater than 0"]),
        (["run", "--sessions", "0"], ["sessions:", "greater than or equal to 1"]),
        (["run", "--jobs", "0"], ["--jobs 0", "at least 1"]),
        (["run", "--jobs", "ray"], ["--jobs ray", "not supported"]),
        (["run", "-c", "sessions"], ["expected key=value"]),
        (["run", "missing.yaml"], ["missing.yaml: no such experiment file"]),
        (["list", "sistems"], ["unknown kind 'sistems'; did you mean 'systems'?"]),
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


def test_session_larger_than_the_kv_cache(cli, tmp_path):
    """It is rejected when it arrives and counted as failed; the run neither hangs nor fails."""
    lines = [session_line(k) for k in range(3)]
    lines.append(session_line(3, prompt_tokens=60_000))
    path = write_trace(tmp_path / "big.jsonl", lines)
    code, out, _ = cli(*RUN, "-w", path, "-c", "engine.params.num_blocks=1000", "--json")
    assert code == 0
    (cell,) = json.loads(out)["cells"]
    assert cell["sessions"] == {"arrived": 4, "completed": 3, "failed": 1}
    assert cell["metrics"]["slo_attainment"]["10"] <= 0.75


def test_out_that_cannot_be_written(cli, trace, tmp_path):
    """A file, or something below one, is no place for a run folder."""
    (tmp_path / "file").write_text("")
    options = ("--rate", "1", "--sessions", "2", "-w", trace)
    one_line(cli("run", *options, "--out", "file"), "--out file", "is a file")
    one_line(cli("run", *options, "--out", "file/run"), "file/run", "--out")


def test_existing_run_is_not_overwritten(cli, trace):
    """A second run into the same folder must say whether it continues or replaces the first."""
    cli(*RUN, "-w", trace)
    one_line(cli(*RUN, "-w", trace), "--resume", "--overwrite")
    assert cli(*RUN, "-w", trace, "--overwrite")[0] == 0
    code, out, err = cli(*RUN, "-w", trace, "--resume")
    assert code == 0
    assert "vllm" in out
    assert "nothing to resume" in err


def marsbench(*arguments, cwd, **options) -> subprocess.Popen:
    code = "from marsbench.cli import main; main()"
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "XDG_CACHE_HOME": str(cwd)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def test_full_disk_keeps_finished_cells(trace, tmp_path):
    """When files cannot grow any further the run ends with one line and status 1; the cell that
    still fitted is kept.
    """
    first, later, _ = session_line(0)["turns"]
    turns = [first, *[later] * 300]
    long = [session_line(k, turns=turns) for k in range(4)]
    write_trace(tmp_path / "long.jsonl", long)

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))

    arguments = ["run", "--rate", "0.01", "--split", "all", "--sessions", "4", "--out", "out"]
    arguments += ["--no-cache", "-w", "small.jsonl", "-w", "long.jsonl"]
    run = marsbench(*arguments, cwd=tmp_path, preexec_fn=limit)
    _, err = run.communicate(timeout=60)
    assert run.returncode == 1, err
    assert "File too large" in err
    assert "1 of 2 cells are kept in out" in err.splitlines()[-1]
    assert "Traceback" not in err


def test_interrupt_keeps_finished_cells(trace, tmp_path):
    """Ctrl-C during the cells: status 130, one line on what is kept, and --resume finishes."""
    arguments = ["run", "--rate", "1", "--split", "all", "-w", trace, "-o", "out"]
    arguments += ["--sessions", "300", "--seeds", "40"]
    run = marsbench(*arguments, cwd=tmp_path)
    assert run.stderr is not None
    for line in run.stderr:
        if line.startswith("[2/40]"):
            break
    run.send_signal(signal.SIGINT)
    _, err = run.communicate(timeout=60)
    assert run.returncode == 130, err
    assert "interrupted: " in err.splitlines()[-1]
    assert " of 40 cells are kept in out" in err.splitlines()[-1]
    kept = len(list((tmp_path / "out" / "cells").glob("*/cell.json")))
    assert 2 <= kept < 40


def test_interrupt_before_the_first_cell(trace, tmp_path):
    """Ctrl-C while a run prepares: status 130 and one line; the folder can be used again at once."""
    arguments = ["run", "-w", "swe-bench", "-s", "vllm-tuned", "-o", "out", "--no-cache"]
    run = marsbench(*arguments, cwd=tmp_path)
    assert run.stderr is not None
    for line in run.stderr:
        if line.startswith("... capacity"):
            break
    run.send_signal(signal.SIGINT)
    _, err = run.communicate(timeout=60)
    assert run.returncode == 130, err
    assert err.splitlines()[-1] == "marsbench: interrupted"
    again = marsbench("run", "-w", trace, "--rate", "1", "-n", "2", "-o", "out", cwd=tmp_path)
    _, err = again.communicate(timeout=60)
    assert again.returncode == 0, err


def test_killed_run_is_readable_and_resumes(trace, tmp_path, cli):
    """After SIGKILL the finished cells can be reported, and --resume runs only the others."""
    arguments = ["run", "--rate", "1", "--split", "all", "-w", trace, "-o", "out"]
    arguments += ["--sessions", "300", "--seeds", "12"]
    run = marsbench(*arguments, cwd=tmp_path)
    assert run.stderr is not None
    for line in run.stderr:
        if line.startswith("[2/12]"):
            break
    run.kill()
    run.communicate()
    code, out, _ = cli("report", "out", "--no-figures", "--json")
    assert code == 0
    code, out, err = cli(*arguments, "--resume", "--json")
    assert code == 0
    assert len(json.loads(out)["cells"]) == 12
    assert 1 <= sum(row.startswith("[") for row in err.splitlines()) <= 10


def test_list_names_everything(cli):
    """Each kind has names with one line each; --json gives the same as data."""
    code, out, _ = cli("list", "systems", "--json")
    assert code == 0
    systems = json.loads(out)["systems"]
    assert "vllm" in systems
    assert all(systems.values())
    code, out, _ = cli("list")
    assert code == 0
    for kind in ("systems", "workloads", "engines", "profiles", "arrivals", "tools", "metrics"):
        assert f"{kind}:" in out


def test_doctor_reports_every_topic(cli):
    """A healthy installation has nothing broken; what is optional and missing says what it is for."""
    code, out, _ = cli("doctor", "--json")
    findings = json.loads(out)
    assert code == 0, out
    assert {f["topic"] for f in findings} >= {
        "python",
        "plug-ins",
        "profiles",
        "simulation",
        "vllm",
    }
    assert all(f["state"] in {"ok", "missing"} for f in findings)


def test_import_is_light():
    """Importing marsbench pulls in neither torch nor vllm, nor anything but the standard library."""
    code = "import sys, marsbench; print(sorted({'torch', 'vllm', 'numpy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
