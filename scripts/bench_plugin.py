"""What the scheduler plug-in costs: time of vLLM's scheduler per step, and throughput of an engine.

``steps`` (plugin_steps.py): vLLM's scheduler classes without a model, stock, with null policies and
with all of MARS. ``engine`` (plugin_engine.py): vLLM's engine core with a tiny model on the CPU and
each scheduler in turn, the same closed loop of sessions. Ratios are of neighbours in time; the
median is told, with an interval of 95 %.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vllm_python import has_vllm, restart

if not has_vllm():
    restart("bench_plugin")

from plugin_engine import engine_cells
from plugin_steps import LOADS, step_cells

from marsbench.engine.vllm.runtime import require_vllm
from marsbench.errors import MarsbenchError

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "results" / "reference" / "plugin.json"
PARTS = {"steps": step_cells, "engine": engine_cells}


def machine() -> dict[str, Any]:
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = info.read_text(encoding="utf-8").splitlines()
        cpu = next((x.partition(":")[2].strip() for x in lines if x.startswith("model name")), cpu)
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "load_average": os.getloadavg()[0],
        "python": platform.python_version(),
        "vllm": require_vllm(),
    }


def merged(old: dict[str, Any], part: str, cells: list[dict[str, Any]]) -> dict[str, Any]:
    """The stored results with the cells of ``part`` that were measured now in place of theirs."""

    def key(cell: dict[str, Any]) -> tuple[Any, ...]:
        return cell["mode"], cell.get("load"), cell.get("sessions")

    new = {key(cell) for cell in cells}
    kept = [cell for cell in old.get(part, []) if key(cell) not in new]
    other = {name: old[name] for name in PARTS if name in old}
    return {"plugin_version": 2, **other, part: [*kept, *cells]}


def options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=list(PARTS))
    parser.add_argument(
        "--repeats", type=int, default=None, help="rounds of all contenders (steps: 6; engine: 15)"
    )
    parser.add_argument("--modes", nargs="+", choices=["sync", "async"], default=None)
    parser.add_argument("--loads", nargs="+", choices=list(LOADS), default=list(LOADS))
    parser.add_argument("--running", type=int, nargs="+", default=[1, 16, 64, 256])
    parser.add_argument(
        "--steps", type=int, default=800, help="a round of one session; less of more"
    )
    parser.add_argument("--sessions", type=int, default=16, help="at once in an engine")
    parser.add_argument("--layers", type=int, default=24, help="of the engine's model")
    parser.add_argument("--json", type=Path, help="write the numbers there")
    parser.add_argument("--write", action="store_true", help=f"put them into {RESULT.name}")
    given = parser.parse_args(arguments)
    if given.repeats is None:
        given.repeats = 6 if given.part == "steps" else 15
    if min(given.repeats, given.steps, given.sessions, given.layers, *given.running) < 1:
        parser.error("--repeats, --steps, --sessions, --layers and --running must be positive")
    given.modes = given.modes or ["sync", "async"]
    return given


def main() -> int:
    given = options()
    host = machine()
    try:
        cells = PARTS[given.part](given)
    except MarsbenchError as error:
        print(f"bench_plugin: {error}", file=sys.stderr)
        return 1
    for cell in cells:
        cell |= {"machine": host, "repeats": given.repeats}
    for path in [*([given.json] if given.json else []), *([RESULT] if given.write else [])]:
        old = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        text = json.dumps(merged(old, given.part, cells), indent=1) + "\n"
        path.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
