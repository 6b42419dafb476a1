"""``marsbench run``: what it prints, what it writes, and which experiment its words mean."""

from __future__ import annotations

import json
import os
from pathlib import Path

from command_line import RUN, one_line, session_line, write_trace

from marsbench.config import load_config


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


def test_names_with_commas_are_several_names(cli, trace):
    """`-s a,b` is `-s a -s b`, and a workload's file is one name whatever it is called."""
    odd = trace.with_name("a,b.jsonl")
    trace.rename(odd)
    code, out, err = cli(*RUN, "-w", odd.name, "-s", "vllm,static", "-s", "session-fcfs", "--json")
    assert code == 0, err
    systems = [cell["system"] for cell in json.loads(out)["cells"]]
    assert systems == ["vllm", "static", "session-fcfs"]


def test_flags_of_the_engine_by_their_name_alone(cli, trace):
    """`-c num_blocks=900` is `-c engine.params.num_blocks=900` in every command."""
    code, _, err = cli(*RUN, "-w", trace, "-c", "num_blocks=900", "-c", "tools.speed=2")
    assert code == 0, err
    stored = load_config([Path("out/config.yaml")])
    assert stored.engine.params == {"num_blocks": 900}
    assert stored.tools.speed == 2


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
