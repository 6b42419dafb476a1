"""The cluster files in ``deploy/``: they parse, and what they call exists."""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path

import yaml

DEPLOY = Path(__file__).resolve().parent.parent / "deploy"
SLURM = DEPLOY / "grid.slurm"
JOB = DEPLOY / "grid.kubernetes.yaml"


def test_the_array_script_runs_each_shard_and_merges_once(tmp_path):
    """With ``sbatch`` and ``marsbench`` replaced by scripts that print: task 1 of 3 queues the merge
    of all three folders after the array, every task runs its own shard.
    """
    subprocess.run(["bash", "-n", SLURM], check=True)
    for name in ("sbatch", "marsbench"):
        fake = tmp_path / name
        fake.write_text(f'#!/bin/bash\nprintf "%s\\n" "{name} $*"\n')
        fake.chmod(0o755)
    said = {}
    for task in ("1", "2"):
        slurm = {
            "SLURM_ARRAY_TASK_ID": task, "SLURM_ARRAY_TASK_COUNT": "3",
            "SLURM_ARRAY_JOB_ID": "77", "SLURM_CPUS_PER_TASK": "4",
        }  # fmt: skip
        done = subprocess.run(
            ["bash", SLURM, "e.yaml", str(tmp_path / "runs")],
            env={**os.environ, **slurm, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        said[task] = done.stdout.splitlines()
    runs = tmp_path / "runs"
    merge, run = said["1"]
    assert "--dependency=afterok:77" in merge
    folders = " ".join(f"{runs}/{k}-of-3" for k in (1, 2, 3))
    assert merge.endswith(f"--wrap=marsbench merge {folders} --out {runs}/all")
    assert run.startswith("marsbench run e.yaml --shard 1/3 --jobs 4 ")
    assert [line.split(" --jobs")[0] for line in said["2"]] == ["marsbench run e.yaml --shard 2/3"]


def test_the_indexed_job_runs_every_shard():
    """The job has as many completions as shards; its command is the shell's and is one of ours."""
    job = yaml.safe_load(JOB.read_text())
    spec = job["spec"]
    assert (job["apiVersion"], job["kind"], spec["completionMode"]) == (
        "batch/v1",
        "Job",
        "Indexed",
    )
    pod = spec["template"]["spec"]
    assert pod["restartPolicy"] == "Never", "backoffLimitPerIndex needs it"
    (container,) = pod["containers"]
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in pod["volumes"]}
    (script,) = container["args"]
    shown = subprocess.run(
        ["sh", "-c", script.replace("exec marsbench", "echo marsbench")],
        env={"JOB_COMPLETION_INDEX": "7", "PATH": os.environ["PATH"]},
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    words = shlex.split(shown)
    last = spec["completions"]
    assert words[words.index("--shard") + 1] == f"8/{last}"
    assert words[words.index("--out") + 1] == f"/runs/8-of-{last}"


def test_both_use_options_that_exist():
    """Every option of ``marsbench run`` and ``merge`` in the files is known to the command line."""
    import typer.main

    from marsbench.cli import merge, run

    known = set()
    for command in (run.run, merge.command):
        app = typer.Typer()
        app.command()(command)
        for option in typer.main.get_command(app).params:
            known |= {*option.opts}
    text = yaml.safe_load(JOB.read_text())["spec"]["template"]["spec"]["containers"][0]["args"][0]
    lines = SLURM.read_text().partition("# A task")[2]
    used = {word for word in (text + lines).split() if word.startswith("--")}
    assert used
    assert used <= known
