"""``marsbench watch``: a run's events as an outside observer sees them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from marsbench.cli import RunFailed
from marsbench.errors import ConfigError

if TYPE_CHECKING:
    from marsbench.experiment.stream.telemetry import SpanFollower

FLUSH_S = 5
"""Seconds between two times that spans and metrics are sent."""
SILENT_S = 3
"""Seconds without a message after which watch says that it is waiting."""


def watch(
    address: Annotated[str, typer.Argument(help="Of the run's --stream: tcp://127.0.0.1:5557.")],
    records: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write all events: the run's own events.parquet."),
    ] = None,
    otlp: Annotated[
        str,
        typer.Option(metavar="URL", help="Send spans and metrics to a collector, as they happen."),
    ] = "",
    header: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="--otlp: sent along; repeatable.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="A line of JSON each second.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No line each second.")] = False,
) -> None:
    """Follow a run started with --stream: one line a second until it is over."""
    from marsbench.extras import require

    require("live", "watch")
    from marsbench.experiment.stream.observer import Observer

    if records is not None and not records.parent.is_dir():
        raise ConfigError(f"--records {records}: no such folder {records.parent}")
    follower = _follower(otlp, header) if otlp else None
    observer = Observer(address, keep=records is not None, follower=follower)
    said: dict[str, Any] = {}
    silent_s = seconds = 0
    try:
        while observer.end is None and not observer.gone:
            observer.watch(1.0)
            seconds += 1
            if follower is not None and seconds % FLUSH_S == 0:
                follower.flush()
            status = observer.status()
            silent_s = silent_s + 1 if status["run_id"] is None else 0
            if silent_s == SILENT_S:
                print(
                    f"marsbench: nothing is published at {address} yet; start a run there with "
                    f"--stream {address}, or press Ctrl-C",
                    file=sys.stderr,
                )
            if not quiet and status != said and status["run_id"] is not None:
                print(json.dumps(status) if as_json else line(status), flush=True)
            said = status
        if follower is not None:
            follower.flush()
        if observer.gone:
            raise RunFailed(f"the run at {address} went away before its end")
        if records is not None:
            num_cells = observer.write(records)
            print(f"{records}: events of {num_cells} cells", file=sys.stderr)
    finally:
        observer.close()
        if follower is not None:
            follower.close()
    assert observer.end is not None
    if not observer.end.complete:
        raise RunFailed("the run is over, but not all of its cells are finished")


def _follower(endpoint: str, header: list[str] | None) -> SpanFollower:
    from marsbench.cli.export import headers, open_sender
    from marsbench.experiment.stream.telemetry import SpanFollower

    return SpanFollower(open_sender(endpoint, headers(header), "watch --otlp"))


def line(status: dict[str, Any]) -> str:
    """One line about a run at work."""
    cells = f"{status['cells_over']}/{status['num_cells']} cells"
    if "cell" not in status:
        return cells
    pace = f"load {status['load']:g}" if status["load"] is not None else ""
    if status["load"] is None and status["rate_per_s"] is not None:
        pace = f"{status['rate_per_s']:g} sessions/s"
    what = [status["system"], "on", status["workload"], pace, f"seed {status['seed']}:"]
    others = status["cells_running"] - 1
    return (
        f"{cells}; {' '.join(word for word in what if word)} {status['time_s']:.1f} s, "
        f"{status['sessions_over']}/{status['sessions']} sessions over, "
        f"{status['sessions_arrived'] - status['sessions_over']} at work, "
        f"{status['tools_running']} tools, KV {status['kv_used']:.0%}, {status['events']:,} events"
        + (f"; other cells at work: {others}" if others > 0 else "")
    )
