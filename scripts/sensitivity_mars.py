"""What each parameter of MARS is worth: one at a time, on sessions no result is reported on.

    python scripts/sensitivity_mars.py run      # simulate, write the CSV, draw the figure
    python scripts/sensitivity_mars.py draw     # the figure again, from the CSV
    python scripts/sensitivity_mars.py table    # the parameter table of mars_impl/README.md

Every numeric parameter takes half and twice its default (or the values in ``VALUES``) while the
others keep theirs; sessions and arrivals are the same in all runs of a workload, load and seed.
"""

from __future__ import annotations

import argparse
import math
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import gmean

from mars_impl.params import describe
from marsbench.config import load_config
from marsbench.experiment import tasks
from marsbench.experiment.cells import points
from marsbench.experiment.lab import Lab
from marsbench.experiment.memo import Memo
from marsbench.experiment.pool import Pool
from marsbench.experiment.wiring import Setup
from marsbench.report import style

ROOT = Path(__file__).parents[1]
CSV = ROOT / "results" / "reference" / "mars_sensitivity.csv"
FIGURE = CSV.with_suffix(".png")
README = ROOT / "mars_impl" / "README.md"
BEGIN, END = "<!-- params:begin -->\n", "<!-- params:end -->\n"
PROFILE = "h100-nvl/qwen3-coder-30b-a3b"
PANELS = {("swe-bench", 16): "swe-bench", ("hybrid", 16): "hybrid",
          ("swe-bench", 2): "swe-bench, 2 tool cores"}  # fmt: skip
"""(workload, tool cores) -> title."""
LOADS = (0.8, 1.1)
NUM_SESSIONS = 80
NUM_SEEDS = 2

OFF = {"static_window", "fixed_ttl_s"}
"""0 means off: these replace a mechanism and are no matter of degree."""
VALUES: dict[str, tuple[float, ...]] = {
    "kv_target": (0.8, 0.9, 1.1),
    "busy_high": (0.5, 0.75, 1.0),
    "window_decrease": (0.5, 0.85),
    "ema": (0.1, 0.4),
    "pin_share": (0.5, 0.75),
    "opportunity": (0.0, 2.0),
}
"""Where half and twice the default would leave the range that makes sense."""
ALMOST_NOTHING = 0.005
"""Parameters that move the mean by less on every workload are named below the figure, not drawn."""


class Progress:
    """Says on stderr what is being measured; a ``Lab`` asks for no more."""

    def note(self, text: str) -> None:
        print(text, file=sys.stderr)

    stage = note


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("command", choices=("run", "draw", "table"))
    command = parser.parse_args().command
    if command == "table":
        write_table()
        return
    if command == "run":
        CSV.parent.mkdir(parents=True, exist_ok=True)
        sweep().to_csv(CSV, index=False, float_format="%.6g")
    draw(pd.read_csv(CSV))


def variants() -> Iterator[tuple[str, float]]:
    """(parameter, value) of every run beside the default."""
    for name, default, unit, _ in describe():
        if unit == "switch" or name in OFF:
            continue
        for value in VALUES.get(name, (default / 2, default * 2)):
            if value != default:
                yield name, value


def sweep() -> pd.DataFrame:
    """Mean session latency of every variant, by panel and load: geometric means over seeds."""
    config = load_config(
        flags={
            "workload": sorted({workload for workload, _ in PANELS}), "system": ["mars"],
            "tool_cores": sorted({cores for _, cores in PANELS}), "profile": [PROFILE],
            "load": list(LOADS), "sessions": NUM_SESSIONS, "seeds": NUM_SEEDS, "split": "tuning",
        }
    )  # fmt: skip
    runs: list[tuple[str, float | None]] = [("default", None), *variants()]
    rows = []
    progress: Any = Progress()
    with Pool(1) as pool:
        lab = Lab(config, Memo(None, progress.note), pool, progress)
        for point in points(config):
            if (point.workload, point.tool_cores) not in PANELS:
                continue
            sessions, plan = lab.cell_sessions(point), lab.point_arrivals(point)
            setup = Setup.of(config, point.profile, point.tool_cores)
            print(point.describe(), file=sys.stderr)
            base = math.nan
            for name, value in runs:
                params = {} if value is None else {name: value}
                latency_s = tasks.trial(
                    tasks.TrialTask(setup, "mars", params, sessions, plan, point.seed)
                )
                base = latency_s if value is None else base
                key = (point.workload, point.tool_cores, point.load, name, value)
                rows.append((*key, latency_s, latency_s / base))
    keys = ["workload", "tool_cores", "load", "parameter", "value"]
    table = pd.DataFrame(rows, columns=[*keys, "mean_latency_s", "relative"])
    return table.groupby(keys, sort=False, dropna=False).agg(gmean).reset_index()


def draw(table: pd.DataFrame) -> None:
    """How much does mean latency change when one parameter of MARS does?"""
    import seaborn as sns

    changed = table[table["parameter"] != "default"].copy()
    defaults = {name: default for name, default, _, _ in describe()}
    lower = changed["value"] < changed["parameter"].map(defaults)
    changed["percent"] = 100 * (changed["relative"] - 1)
    changed["set"] = np.where(lower, "lower", "higher")
    swing = changed.groupby("parameter")["relative"].agg(lambda r: float(np.abs(r - 1).max()))
    order = list(swing[swing >= ALMOST_NOTHING].sort_values(ascending=False).index)
    flat = sorted(swing[swing < ALMOST_NOTHING].index)
    places = {name: place for place, name in enumerate(order)}
    changed["place"] = changed["parameter"].map(places) + np.where(lower, -0.16, 0.16)
    shown = changed[changed["parameter"].isin(order)]
    with style.theme():
        figure, axes = style.panels(1, len(PANELS), share=True)
        figure.set_size_inches(12.5, 0.27 * len(order) + 2.0)
        for panel, ((workload, cores), title) in zip(axes, PANELS.items(), strict=True):
            here = (shown["workload"] == workload) & (shown["tool_cores"] == cores)
            panel.axvline(0, color="#777777", lw=0.8, zorder=0)
            sns.scatterplot(
                shown[here],
                x="percent", y="place", hue="set", hue_order=["lower", "higher"],
                style="load", palette=["#0173b2", "#d55e00"], s=32, ax=panel,
                legend=panel is axes[0],
            )  # fmt: skip
            panel.set(title=title, ylabel="", xlabel="mean session latency, change in %")
        axes[0].set_yticks(range(len(order)), order)
        axes[0].set_ylim(len(order) - 0.5, -0.5)
        handles, labels = axes[0].get_legend_handles_labels()
        axes[0].legend().remove()
        figure.legend(handles, labels, loc="outside right upper")
        if flat:
            note = f"less than {100 * ALMOST_NOTHING:g} % everywhere: {', '.join(flat)}"
            figure.supxlabel(textwrap.fill(note, 150), fontsize="x-small")
        figure.savefig(FIGURE)


def write_table() -> None:
    """Put the parameters between the markers of the README."""
    lines = ["| parameter | default | unit | source |\n", "| --- | --- | --- | --- |\n"]
    lines += [f"| `{n}` | {default:g} | {unit} | {source} |\n"
              for n, default, unit, source in describe()]  # fmt: skip
    text = README.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    README.write_text(f"{before}{BEGIN}{''.join(lines)}{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
