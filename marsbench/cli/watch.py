"""``marsbench watch``: a run's events as an outside observer sees them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from marsbench.cli import RunFailed
from marsbench.errors import ConfigError


def watch(
    address: Annotated[str, typer.Argument(help="Of the run's --stream: tcp://127.0.0.1:5557.")],
    records: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write all events: the run's own events.parquet."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="A line of JSON each second.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No line each second.")] = False,
) -> None:
    """Follow a run started with --stream: one line a second until it is over."""
    try:
        from marsbench.experiment.stream.observer import Observer
    except ImportError as error:
        raise ConfigError(f"watch needs ZeroMQ: {error}; pip install 'marsbench[live]'") from error
    if records is not None and not records.parent.is_dir():
        raise ConfigError(f"--records {records}: no such folder {records.parent}")
    observer = Observer(address, keep=records is not None)
    said: dict[str, Any] = {}
    try:
        while observer.end is None and not observer.gone:
            observer.watch(1.0)
            status = observer.status()
            if not quiet and status != said and status["run_id"] is not None:
                print(json.dumps(status) if as_json else line(status), flush=True)
            said = status
        if observer.gone:
            raise RunFailed(f"the run at {address} went away before its end")
        if records is not None:
            num_cells = observer.write(records)
            print(f"{records}: events of {num_cells} cells", file=sys.stderr)
    finally:
        observer.close()
    assert observer.end is not None
    if not observer.end.complete:
        raise RunFailed("the run is over, but not all of its cells are finished")


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
