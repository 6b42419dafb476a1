"""The command line: what each command prints, and one clear line for everything that goes wrong."""

from __future__ import annotations

import gzip
import json
import os
import re
import resource
import signal
import subprocess
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path

import pytest

from marsbench.cli import COMMANDS, main
from marsbench.config import ExperimentConfig, load_config
from marsbench.extras import EXTRAS, how_to_install

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


HEAVY = {
    "numpy", "pandas", "scipy", "pyarrow", "pydantic", "matplotlib", "seaborn", "msgspec",
    "datasets", "torch", "vllm", "rich", "typer", "click",
}  # fmt: skip


@pytest.mark.parametrize(
    "arguments", [["--help"], ["-h"], [], ["--version"], ["list"], ["list", "--json"]]
)
def test_quick_answers_import_nothing_heavy(arguments):
    """Help, version and the list of names answer without any package that takes long to import."""
    code = (
        "import sys; from marsbench.cli import main\n"
        f"try: main({arguments})\n"
        "except SystemExit as stopped: assert not stopped.code\n"
        f"print('heavy', sorted({HEAVY} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd="/"
    )
    assert done.stdout.splitlines()[-1] == "heavy []"


def test_help_has_a_line_for_every_command(cli):
    """The short and the long option, and no argument at all, list each command with its line."""
    for arguments in (["--help"], ["-h"], []):
        code, out, _ = cli(*arguments)
        assert code == 0
        for name, (_, summary) in COMMANDS.items():
            assert f"  {name} " in out
            assert summary in out


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(cli, name):
    """Each row of the table leads to a command that explains itself."""
    code, out, _ = cli(name, "--help")
    assert code == 0
    assert f"Usage: marsbench {name}" in out
    assert cli(name, "-h") == (code, out, "")


@pytest.mark.parametrize(("words", "at", "wanted"), [("marsbench va", 1, "validate"),
                                                     ("marsbench run --resu", 2, "--resume")])  # fmt: skip
def test_shells_complete_commands_and_options(words, at, wanted):
    """What --install-completion sets up asks the program itself, which knows both."""
    asked = {"_MARSBENCH_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(at)}
    done = subprocess.run(
        [sys.executable, "-m", "marsbench"],
        capture_output=True, text=True, check=True, env={**os.environ, **asked},
    )  # fmt: skip
    assert wanted in done.stdout.split()


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


def test_session_larger_than_the_kv_cache(cli, tmp_path):
    """It is rejected when it arrives and counted as failed; the run neither hangs nor fails."""
    lines = [session_line(k) for k in range(3)]
    lines.append(session_line(3, prompt_tokens=60_000))
    path = write_trace(tmp_path / "big.jsonl", lines)
    code, out, _ = cli(*RUN, "-w", path, "-c", "engine.params.num_blocks=1000", "--json")
    assert code == 0
    (cell,) = json.loads(out)["cells"]
    assert cell["sessions"] == {"arrived": 4, "distinct": 4, "completed": 3, "failed": 1}
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


def test_names_with_commas_are_several_names(cli, trace):
    """`-s a,b` is `-s a -s b`, and a workload's file is one name whatever it is called."""
    odd = trace.with_name("a,b.jsonl")
    trace.rename(odd)
    code, out, err = cli(*RUN, "-w", odd.name, "-s", "vllm,static", "-s", "session-fcfs", "--json")
    assert code == 0, err
    systems = [cell["system"] for cell in json.loads(out)["cells"]]
    assert systems == ["vllm", "static", "session-fcfs"]


def test_validate_takes_a_load_and_several_systems(cli, trace):
    """`validate` plays each system's cell at the rate that a run of the same load would have."""
    arguments = ["-w", trace, "--load", "0.5", "-c", "capacity.sessions=8"]
    code, out, err = cli(
        "validate", "--engines", "sim,sim", "-n", "4", "-s", "vllm,static", *arguments
    )
    assert code == 0, err
    assert "vllm: " in out
    assert "static: " in out
    assert out.count("steps compared: all equal") == 2
    assert "... capacity of small" in err


def test_flags_of_the_engine_by_their_name_alone(cli, trace):
    """`-c num_blocks=900` is `-c engine.params.num_blocks=900` in every command."""
    code, _, err = cli(*RUN, "-w", trace, "-c", "num_blocks=900", "-c", "tools.speed=2")
    assert code == 0, err
    stored = load_config([Path("out/config.yaml")])
    assert stored.engine.params == {"num_blocks": 900}
    assert stored.tools.speed == 2


def test_run_shows_its_defaults(cli):
    """What an option is without being given stands in the help, from the experiment's own schema."""
    _, out, _ = cli("run", "--help")
    text = " ".join(out.split())
    config = ExperimentConfig()
    for value in (config.profile[0], config.split, config.sessions, config.load[0],
                  config.engine.name, config.arrival.name, config.tool_cores[0]):  # fmt: skip
        assert f"[default: ({value})]" in text


def test_resume_needs_only_the_folder(cli, trace):
    """`--resume --out DIR` continues the experiment of DIR/config.yaml, whatever its flags were."""
    arguments = [*RUN, "-w", trace, "-s", "vllm,static", "-c", "num_blocks=20000"]
    assert cli(*arguments)[0] == 0
    whole = json.loads(Path("out/summary.json").read_text())
    parts = Path("out/cells/0000")
    parts.mkdir(parents=True)
    for name in ("events", "sessions", "turns"):
        Path(f"out/{name}.parquet").rename(parts / f"{name}.parquet")
    entry = {k: v for k, v in whole["cells"][0].items() if k != "cell"}
    cell = {"index": 0, "run_id": whole["run_id"], "entry": entry}
    (parts / "cell.json").write_text(json.dumps(cell))
    Path("out/summary.json").unlink()
    code, _, err = cli("run", "--resume", "--out", "out")
    assert code == 0, err
    assert sum(line.startswith("[") for line in err.splitlines()) == 1
    again = json.loads(Path("out/summary.json").read_text())
    assert [c["system"] for c in again["cells"]] == ["vllm", "static"]
    one_line(cli("run", "--resume", "--out", "out", "-n", "5"), "sessions was 4, now 5")


def test_termination_before_the_first_cell(trace, tmp_path):
    """SIGTERM while a run prepares ends it with status 143 and one line."""
    arguments = ["run", "-w", "swe-bench", "-s", "vllm-tuned", "-o", "out", "--no-cache"]
    run = marsbench(*arguments, cwd=tmp_path)
    assert run.stderr is not None
    for line in run.stderr:
        if line.startswith("... capacity"):
            break
    run.terminate()
    _, err = run.communicate(timeout=300)
    assert run.returncode == 143, err
    assert err.splitlines()[-1] == "marsbench: terminated before the first cell was finished"


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


def test_extras_are_those_of_the_distribution():
    """The modules that doctor looks for are what the distributions of each extra install."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    for extra, (_, modules) in EXTRAS.items():
        names = {re.split(r"[<>=\[]", requirement)[0] for requirement in extras[extra]}
        known = {
            "pyzmq": "zmq",
            "prometheus-client": "prometheus_client",
            "opentelemetry-sdk": "opentelemetry.sdk",
            "opentelemetry-exporter-otlp-proto-http": "opentelemetry.exporter.otlp.proto.http",
        }
        assert {known.get(name, name) for name in names} == set(modules), extra


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
    _, err = run.communicate(timeout=300)
    assert run.returncode == 1, err
    assert "File too large" in err
    assert "1 of 2 cells are kept in out" in err.splitlines()[-1]
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("number", "status", "word"),
    [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")],
)
def test_interrupt_keeps_finished_cells(trace, tmp_path, number, status, word):
    """Ctrl-C or SIGTERM during the cells: a status of its own, one line on what is kept, and a
    summary of the finished cells.
    """
    arguments = ["run", "--rate", "1", "--split", "all", "-w", trace, "-o", "out"]
    arguments += ["--sessions", "300", "--seeds", "10"]
    run = marsbench(*arguments, cwd=tmp_path)
    assert run.stderr is not None
    for line in run.stderr:
        if line.startswith("[2/10]"):
            break
    run.send_signal(number)
    out, err = run.communicate(timeout=300)
    assert run.returncode == status, err
    assert err.splitlines()[-1].startswith(f"marsbench: {word}: ")
    assert " of 10 cells are kept in out" in err.splitlines()[-1]
    assert "latency s" in out
    kept = len(list((tmp_path / "out" / "cells").glob("*/cell.json")))
    assert 2 <= kept < 10
    assert len(json.loads((tmp_path / "out/summary.json").read_text())["cells"]) == kept


def test_interrupt_before_the_first_cell(trace, tmp_path):
    """Ctrl-C while a run prepares: status 130 and one line; the folder can be used again at once."""
    arguments = ["run", "-w", "swe-bench", "-s", "vllm-tuned", "-o", "out", "--no-cache"]
    run = marsbench(*arguments, cwd=tmp_path)
    assert run.stderr is not None
    for line in run.stderr:
        if line.startswith("... capacity"):
            break
    run.send_signal(signal.SIGINT)
    _, err = run.communicate(timeout=300)
    assert run.returncode == 130, err
    assert err.splitlines()[-1] == "marsbench: interrupted"
    again = marsbench("run", "-w", trace, "--rate", "1", "-n", "2", "-o", "out", cwd=tmp_path)
    _, err = again.communicate(timeout=300)
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
    assert {f"[{extra}]" for extra in EXTRAS} <= {f["topic"] for f in findings}
    assert {f["topic"] for f in findings} >= {
        "python",
        "plug-ins",
        "profiles",
        "simulation",
        "vllm",
    }
    assert all(f["state"] in {"ok", "missing"} for f in findings)


def test_doctor_says_what_is_missing(cli, monkeypatch, tmp_path):
    """An extra that is not installed and a docker daemon that is down are both said to be missing."""
    docker = tmp_path / "docker"
    docker.write_text("#!/bin/sh\necho 'Cannot connect to the Docker daemon' >&2\nexit 1\n")
    docker.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    _, out, _ = cli("doctor", "--json")
    found = {f["topic"]: (f["state"], f["text"]) for f in json.loads(out)}
    assert found["[gateway]"][0] == "missing"
    assert f"{how_to_install('gateway')} (uvicorn missing)" in found["[gateway]"][1]
    assert found["docker"][0] == "missing"
    assert "daemon does not answer: Cannot connect" in found["docker"][1]


def test_doctor_finds_vllm_where_runs_find_it(cli, monkeypatch, tmp_path):
    """A vLLM whose environment lies beside the user's files is not said to be missing."""
    if find_spec("vllm") is not None:
        pytest.skip("vllm is installed here")
    python = tmp_path / ".venv-vllm" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text("#!/bin/sh\nexit 0\n")
    python.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    _, out, _ = cli("doctor", "--json")
    found = {f["topic"]: (f["state"], f["text"]) for f in json.loads(out)}
    assert found["vllm"] == ("ok", f"in {python}")


def test_import_is_light():
    """Importing marsbench pulls in neither torch nor vllm, nor anything but the standard library."""
    code = "import sys, marsbench; print(sorted({'torch', 'vllm', 'numpy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
