"""Refreshes what the repository says of MARS's parameters: ``marsbench sensitivity`` with its grid here.

    python scripts/sensitivity_mars.py run      # simulate, write the CSV, draw the figure
    python scripts/sensitivity_mars.py draw     # the figure again, from the CSV
    python scripts/sensitivity_mars.py table    # the parameter table of mars_impl/README.md

Every numeric parameter takes half and twice its default (or the values in ``VALUES``) while the
others keep theirs; sessions and arrivals are the same in all runs of a workload, load and seed.
"""

from __future__ import annotations

import argparse
import textwrap
from pathlib import Path

import numpy as np
import pandas as pd

from mars_impl.params import describe
from marsbench.cli.progress import make_reporter
from marsbench.config import load_config
from marsbench.experiment.lab import Lab
from marsbench.experiment.memo import Memo
from marsbench.experiment.pool import Pool
from marsbench.experiment.sensitivity import check, frame, sensitivity
from marsbench.markdown import write_block
from marsbench.report import style

ROOT = Path(__file__).parents[1]
CSV = ROOT / "results" / "reference" / "mars_sensitivity.csv"
FIGURE = CSV.with_suffix(".png")
README = ROOT / "mars_impl" / "README.md"
BLOCK = "params"
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
    "pin_share": (0.5, 0.75),
}
"""Where half and twice the default would leave the range that makes sense."""
ALMOST_NOTHING = 0.005
"""Parameters that move the mean by less on every workload are named below the figure, not drawn."""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("command", choices=("run", "draw", "table"))
    command = parser.parse_args().command
    if command == "table":
        write_block(README, BLOCK, parameter_table())
        return
    if command == "run":
        CSV.parent.mkdir(parents=True, exist_ok=True)
        sweep().to_csv(CSV, index=False, float_format="%.6g")
    draw(pd.read_csv(CSV), FIGURE)


def grid() -> dict[str, list[float]]:
    """Return the values that each parameter takes beside its default."""
    return {
        name: [v for v in VALUES.get(name, (default / 2, default * 2)) if v != default]
        for name, default, unit, _ in describe()
        if unit != "switch" and name not in OFF
    }


def sweep() -> pd.DataFrame:
    """Measure every panel and load, and return the rows in the columns of the stored file."""
    reporter = make_reporter(quiet=False)
    parts = []
    for workload, tool_cores in PANELS:
        config = load_config(
            flags={
                "workload": workload, "system": "mars", "tool_cores": tool_cores, "load": LOADS,
                "profile": PROFILE, "sessions": NUM_SESSIONS, "seeds": NUM_SEEDS, "split": "tuning",
            }
        )  # fmt: skip
        with Pool(1) as pool:
            lab = Lab(config, Memo(None, reporter.note), pool, reporter)
            check(lab, grid())
            parts += [frame(rows) for rows in sensitivity(lab, grid())]
    keys = ["workload", "tool_cores", "load", "parameter", "value"]
    table = pd.concat(parts, ignore_index=True).rename(columns={"ratio": "relative"})
    return table[[*keys, "mean_latency_s", "relative"]]


def draw(table: pd.DataFrame, path: Path) -> None:
    """How much does mean latency change when one parameter of MARS does?"""
    import seaborn as sns
    from matplotlib.figure import Figure

    defaults = {name: default for name, default, _, _ in describe()}
    changed = table[table["parameter"].isin(defaults)].copy()  # some have become constants since
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
        figure = Figure(figsize=(12.5, 0.27 * len(order) + 2.0), layout="constrained")
        axes = figure.subplots(1, len(PANELS), sharex=True, sharey=True)
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
        figure.savefig(path)


def parameter_table() -> str:
    """Return a Markdown table of every parameter of MARS with its default, unit and source."""
    lines = ["| parameter | default | unit | source |", "| --- | --- | --- | --- |"]
    lines += [f"| `{n}` | {default:g} | {unit} | {source} |"
              for n, default, unit, source in describe()]  # fmt: skip
    return "\n".join(lines)


if __name__ == "__main__":
    main()
