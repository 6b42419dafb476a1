"""The Grafana dashboard of deploy/ as a picture, from a Prometheus that scrapes a gateway.

    python scripts/render_dashboard.py --prometheus http://127.0.0.1:9090 --minutes 10 --out dashboard.png

The same panels, titles and expressions, drawn where no Grafana runs.
"""

from __future__ import annotations

import argparse
import json
import time
import urllib.parse
import urllib.request
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.dates import DateFormatter

BOARD = Path(__file__).parents[1] / "deploy" / "grafana" / "dashboards" / "gateway.json"
COLUMNS = 3
STEPS = 240
RATE = "30s"
"""In place of Grafana's $__rate_interval."""


def series(url: str, expression: str, since_s: float, until_s: float) -> list[dict[str, Any]]:
    asked = {
        "query": expression.replace("$__rate_interval", RATE),
        "start": since_s,
        "end": until_s,
        "step": max((until_s - since_s) / STEPS, 1),
    }
    with urllib.request.urlopen(  # noqa: S310 - of the address that was given
        f"{url}/api/v1/query_range?{urllib.parse.urlencode(asked)}"
    ) as page:
        return json.load(page)["data"]["result"]


def label(metric: dict[str, str], expression: str) -> str:
    shown = {k: v for k, v in metric.items() if k not in {"__name__", "instance", "job"}}
    name = metric.get("__name__", "").removeprefix("marsbench_gateway_")
    quantile = expression.partition("histogram_quantile(")[2].partition(",")[0]
    parts = [name, f"p{float(quantile) * 100:g}" if quantile else "", *shown.values()]
    return " ".join(part for part in parts if part)


def draw(options: argparse.Namespace) -> int:
    """Returns how many panels have data."""
    panels = [p for p in json.loads(BOARD.read_text())["panels"] if p.get("targets")]
    rows = -(-len(panels) // COLUMNS)
    figure, axes = plt.subplots(rows, COLUMNS, figsize=(5.2 * COLUMNS, 2.6 * rows), squeeze=False)
    until_s = time.time()  # noqa: TID251 - of what is asked for
    filled = 0
    for axis, panel in zip(axes.flat, panels, strict=False):
        lines = 0
        for target in panel["targets"]:
            expression = target["expr"]
            for found in series(
                options.prometheus, expression, until_s - 60 * options.minutes, until_s
            ):
                at = [datetime.fromtimestamp(float(t), UTC) for t, _ in found["values"]]
                values = [float(value) for _, value in found["values"]]
                axis.plot(at, values, linewidth=1.2, label=label(found["metric"], expression))
                lines += 1
        axis.set_title(panel["title"], fontsize=10, loc="left")
        axis.xaxis.set_major_formatter(DateFormatter("%H:%M"))
        axis.tick_params(labelsize=7)
        axis.grid(alpha=0.3)
        axis.set_ylim(bottom=0)
        if lines:
            axis.legend(fontsize=6, loc="upper left")
        filled += bool(lines)
    for axis in axes.flat[len(panels) :]:
        axis.remove()
    figure.tight_layout()
    figure.savefig(options.out, dpi=90)
    return filled


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prometheus", default="http://127.0.0.1:9090", metavar="URL")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--out", type=Path, default=Path("dashboard.png"))
    options = parser.parse_args()
    print(f"{options.out}: {draw(options)} panels with data")


if __name__ == "__main__":
    main()
