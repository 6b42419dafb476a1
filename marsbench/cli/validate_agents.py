"""The part of ``marsbench validate`` for a run of live agents: the simulator against what was measured."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from marsbench.cli import RunFailed


def compare(run: Path, *, tolerance: float, as_json: bool) -> None:
    """Print a row a cell; RunFailed if a mean differs by more than the tolerance."""
    from marsbench.cli.progress import make_reporter
    from marsbench.experiment.agents_agree import compare_agents

    found = compare_agents(run, lambda: make_reporter(quiet=True))
    if as_json:
        print(json.dumps([dataclasses.asdict(each) for each in found], indent=1))
    else:
        print(
            "| workload | system | seed | tasks | live, s | simulated, s | difference | task: median | others' CPU |"
        )
        print("|---|---|--:|--:|--:|--:|--:|--:|--:|")
        for each in found:
            share = each.others_cpu_share
            print(
                f"| {each.workload} | {each.system} | {each.seed} | {each.tasks} | {each.live_s:.1f} | "
                f"{each.simulated_s:.1f} | {each.difference:+.1%} | {each.task_median:.1%} | "
                f"{'' if share is None else f'{share:.0%}'} |"
            )
    worst = max(found, key=lambda each: abs(each.difference))
    if abs(worst.difference) > tolerance:
        raise RunFailed(
            f"{run}: the simulator is {worst.difference:+.1%} off in the mean task time of "
            f"{worst.system}, seed {worst.seed}; --tolerance {tolerance:g} allows less"
        )
