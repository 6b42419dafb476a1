"""``marsbench doctor``: what this machine can run, and what is missing."""

from __future__ import annotations

import json
import os
import sys
from importlib.util import find_spec

import pytest

from marsbench.extras import EXTRAS, how_to_install


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
