"""The benchmark of the virtual-time engines: it starts, measures what it says, and its table is current."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from marsbench.markdown import read_block

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "scripts" / "bench_engines.py"
RESULT = ROOT / "results" / "reference" / "engines.json"

needs_vllm = pytest.mark.skipif(find_spec("vllm") is None, reason="vllm is not installed")


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True, check=False
    )


@pytest.mark.vllm
@needs_vllm
def test_help() -> None:
    """--help says what is measured and by which clock, without measuring."""
    done = bench("--help")
    assert done.returncode == 0, done.stderr
    assert "CPU time decides" in " ".join(done.stdout.split())
    assert "--write" in done.stdout


@pytest.mark.vllm
@needs_vllm
def test_two_sessions(tmp_path: Path) -> None:
    """Two sessions of four turns are eight calls at each rate, alike in both engines and timed."""
    path = tmp_path / "engines.json"
    done = bench("--sessions", "2", "--turns", "4", "--repeats", "2", "--json", str(path))
    assert done.returncode == 0, done.stderr
    assert "time.process_time" in done.stdout
    cells = json.loads(path.read_text())["cells"]
    assert [cell["cell"] for cell in cells] == ["warm", "pressured"]
    for cell in cells:
        assert cell["calls"] == 2 * 4
        assert len(cell["vllm-core"]["runs_cpu_s"]) == 2
        sim, core = (cell[engine] for engine in ("sim", "vllm-core"))
        assert cell["speedup"] == pytest.approx(core["cpu_s"] / sim["cpu_s"])
        assert cell["speedup"] > 1
        assert set(cell["overhead"]) == {"marsbench", "vllm default", "marsbench, known"}
        for row in cell["overhead"].values():
            assert row["ratio"] == pytest.approx(row["vllm-core"]["cpu_s"] / row["bare"]["cpu_s"])


def test_without_vllm_it_names_the_setup_script(tmp_path: Path) -> None:
    """Where neither this environment nor .venv-vllm has vLLM, one line says what to run."""
    lonely = tmp_path / "scripts" / "bench_engines.py"
    lonely.parent.mkdir()
    for source in (SCRIPT, SCRIPT.with_name("vllm_python.py")):
        (lonely.parent / source.name).write_bytes(source.read_bytes())
    command = [sys.executable, "-S", "-E", "-s", str(lonely)]  # no packages but Python's own
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "scripts/setup_vllm_cpu.sh" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_the_readme_shows_what_was_measured() -> None:
    """Every cell of engines.json is a row of the README's table, with its ratios."""
    found = json.loads(RESULT.read_text(encoding="utf-8"))
    rows = read_block(ROOT / "results/reference/speed.md", "engines").splitlines()
    for cell in found["cells"]:
        row = next(line for line in rows if line.startswith(f"| {cell['cell']}:"))
        assert f"{cell['speedup']:,.0f} times as fast" in row
        assert ", ".join(f"{o['ratio']:.2f}" for o in cell["overhead"].values()) in row
