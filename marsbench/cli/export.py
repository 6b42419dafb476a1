"""``marsbench export``: a run for Perfetto or for a collector of OpenTelemetry."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from marsbench.cli.output import output
from marsbench.errors import ConfigError

if TYPE_CHECKING:
    from marsbench.export.otlp import Sender
    from marsbench.frames import RunFrames

FORMATS = ("perfetto", "otlp")


def command(
    run: Annotated[Path, typer.Argument(help="Run folder.")],
    format_name: Annotated[str, typer.Option("--format", help="perfetto or otlp.")] = "perfetto",
    cell: Annotated[int | None, typer.Option(metavar="N", help="Number of a cell.")] = None,
    system: Annotated[str | None, typer.Option("--system", "-s", help="Cells of a system.")] = None,
    load: Annotated[float | None, typer.Option(help="Cells of a load.")] = None,
    seed: Annotated[int | None, typer.Option(help="Cells of a seed.")] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="File (.gz, .zst: compressed) or stdout.")
    ] = None,
    endpoint: Annotated[
        str,
        typer.Option(metavar="URL", help="otlp: send to a collector, as http://127.0.0.1:4318."),
    ] = "",
    header: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="otlp: sent along; repeatable.")
    ] = None,
    start: Annotated[
        str, typer.Option(metavar="TIME", help="otlp: when the cell began; default: it ends now.")
    ] = "",
) -> None:
    """Write a cell as a timeline for ui.perfetto.dev, or cells as OpenTelemetry spans and metrics.

    otlp: GenAI conventions, to a collector over HTTP (--endpoint) or as OTLP JSON lines, which
    `marsbench trace import` reads.
    """
    from marsbench import load as load_run

    if format_name not in FORMATS:
        raise ConfigError(f"--format {format_name}: expected one of {', '.join(FORMATS)}")
    if format_name == "perfetto" and (endpoint or header or start):
        raise ConfigError("--endpoint, --header and --start are for --format otlp")
    if endpoint and out:
        raise ConfigError("--endpoint and --out: the spans go to one of them")
    wanted = {"cell": cell, "system": system, "load": load, "seed": seed}
    chosen = load_run(run).only(**{k: v for k, v in wanted.items() if v is not None})
    if format_name == "perfetto":
        from marsbench.export import perfetto

        with output(out) as stream:
            number = perfetto.write(chosen, stream)
        print(f"{number:,} events; open the file at https://ui.perfetto.dev", file=sys.stderr)
    else:
        _otlp(chosen, out, endpoint, headers(header), _start_ns(start))


def headers(given: list[str] | None) -> dict[str, str]:
    """Headers from NAME=VALUE texts."""
    found = {}
    for text in given or ():
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise ConfigError(f"--header {name}: expected NAME=VALUE")
        found[name] = value
    return found


def open_sender(endpoint: str, sent: dict[str, str], what: str) -> Sender:
    """A sender for a command, which says itself in one line when nobody takes what it sends."""
    from marsbench.extras import require

    require("otlp", what)
    from marsbench.export.otlp import Sender

    if not endpoint.startswith(("http://", "https://")):
        raise ConfigError(
            f"{endpoint}: expected the address of a collector, as http://127.0.0.1:4318"
        )
    logging.getLogger("opentelemetry").setLevel(logging.CRITICAL + 1)  # each retry, at length
    return Sender(endpoint, sent)


def _otlp(
    run: RunFrames, out: Path | None, endpoint: str, sent: dict[str, str], start: int | None
) -> None:
    if endpoint:
        sender = open_sender(endpoint, sent, "export --format otlp")
        try:
            for telemetry, session, parent in _sessions(run, start):
                sender.take(telemetry, session, parent)
            sender.flush()
        finally:
            sender.close()
        print(f"{sender.num_spans:,} spans sent to {endpoint}", file=sys.stderr)
        return
    from marsbench.extras import require

    require("otlp", "export --format otlp")
    from marsbench.export import otlp

    spans = (
        span
        for telemetry, session, parent in _sessions(run, start)
        for span in telemetry.spans(session, parent)
    )
    with output(out) as stream:
        number = otlp.write_json(spans, stream)
    print(f"{number:,} spans", file=sys.stderr)


def _sessions(run: RunFrames, start: int | None) -> Iterator[Any]:
    """Each session of each cell, with its cell's telemetry and the id of its parent."""
    from marsbench.export.cell import read_cell
    from marsbench.export.otlp import CellTelemetry

    for cell in run.cells["cell"].tolist():
        spans = read_cell(run, cell)
        began = _now_ns() - spans.end_ps // 1000 if start is None else start
        telemetry = CellTelemetry(spans.run_id, spans.cell, spans.key, began)
        ids = {session.session: session.session_id for session in spans.sessions}
        for session in spans.sessions:
            yield telemetry, session, ids.get(session.parent)


def _start_ns(text: str) -> int | None:
    if not text:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ConfigError(f"--start {text}: expected a time as 2026-01-31T12:00:00+00:00") from None
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return round(moment.timestamp()) * 1_000_000_000


def _now_ns() -> int:
    return round(datetime.now(UTC).timestamp() * 1e9)
