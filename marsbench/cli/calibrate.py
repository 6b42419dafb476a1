"""``marsbench calibrate``: measure a running engine's steps and write a profile of it."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from marsbench.cli.options import Config, overrides
from marsbench.errors import ConfigError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from marsbench.engine.base import EngineConfig
    from marsbench.engine.cost import TurnCost
    from marsbench.engine.fit import Fit, Sample
    from marsbench.engine.hardware import Model
    from marsbench.engine.kind import Value
    from marsbench.engine.live.client import Client
    from marsbench.engine.live.clock import Clock
    from marsbench.engine.live.options import LiveOptions


def command(
    profile: Annotated[
        str | None, typer.Option(help="Whose flags and model the server has: name or YAML file.")
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="The profile to write.")] = Path(
        "calibrated.yaml"
    ),
    engine: Annotated[str, typer.Option(help="vllm, sglang or openai.")] = "vllm",
    config: Config = None,
    most_tokens: Annotated[int, typer.Option(help="Longest prompt.")] = 16_384,
    repeats: Annotated[int, typer.Option(help="Measurements of each probe.", min=1)] = 3,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace --out.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
) -> None:
    """Fit step times to an engine: the profile goes to --out, a figure beside it.

    The server (started with the profile's flags, or at -c url=...) must have nothing else to do.
    """
    from marsbench.config import load_config
    from marsbench.engine import engine_kind
    from marsbench.engine.fit import fit, turn_cost
    from marsbench.engine.live.calibrated import (
        fit_warning,
        profile_of,
        started_model,
        write_profile,
    )
    from marsbench.engine.live.load import load_warning
    from marsbench.engine.live.options import split_options
    from marsbench.engine.profile import load_profile
    from marsbench.extras import require

    if out.suffix not in {".yaml", ".yml"}:
        raise ConfigError(f"--out {out}: a profile's file ends in .yaml")
    if out.exists() and not overwrite:
        raise ConfigError(f"--out {out}: exists; replace it with --overwrite")
    require("live", "calibrate")
    given: dict[str, Any] = {"engine": engine}
    if profile is not None:
        given["profile"] = [profile]
    experiment = load_config(flags=given, overrides=overrides(config))
    options, flags = split_options(experiment.engine.params)
    base = load_profile(experiment.profile[0])
    flags_given = _flags(flags)
    note = (lambda _text: None) if quiet else _note
    config_given = base.engine_config(**flags_given)
    engine_kind(engine).check(experiment.engine.params, config_given)
    shape = started_model(base, options)
    sizes, samples, server, others = _measure(
        engine,
        experiment.engine.params,
        options,
        config_given,
        shape,
        (most_tokens, repeats),
        note,
    )
    found = fit(samples)
    turn = turn_cost(samples, found.delay_s)
    content = profile_of(
        base, sizes, found, samples, turn=turn, model=shape, others=others,
        name=out.stem, measured_on=server, date=dt.datetime.now(tz=dt.UTC).date(),
    )  # fmt: skip
    doubts = [text for text in (load_warning(others), fit_warning(found)) if text is not None]
    for text in doubts:
        _note(f"warning: {text}")
    write_profile(out, content)
    figure = out.with_suffix(".png")
    draw(samples, found).savefig(figure)
    if as_json:
        print(
            json.dumps(_as_json(out, figure, found, samples, turn) | {"warnings": doubts}, indent=1)
        )
    else:
        _print(out, figure, found, samples, turn)


def _flags(flags: dict[str, Any]) -> dict[str, int | str | bool]:
    from marsbench.experiment.wiring import check_flags

    return check_flags("-c", flags)


def _measure(
    engine: str,
    params: Mapping[str, Value],
    options: LiveOptions,
    config: EngineConfig,
    shape: Model | None,
    probes: tuple[int, int],
    note: Any,
) -> tuple[EngineConfig, list[Sample], str, float | None]:
    """The engine's sizes, its measurements, what it is, and the share of this machine's cores that
    other programs used meanwhile. ``probes``: longest prompt, and measurements of each probe.
    """
    import secrets

    from marsbench.engine import engine_kind
    from marsbench.engine.kind import Opening

    salt = secrets.token_hex(4)  # what an earlier calibration left in the cache is of no use
    kind = engine_kind(engine)
    if kind.has_steps:
        raise ConfigError(f"--engine {engine}: has modelled step times; calibrate a real server")
    with kind.open(params, Opening(salt, note=note)) as live:
        from marsbench.engine.live.engine import LiveEngine
        from marsbench.engine.live.load import LoadMeter

        assert isinstance(live, LiveEngine)
        connect = live.connect(config, shape)
        meter = LoadMeter(options.url)
        sizes, samples = asyncio.run(_probe(connect, config, options, probes, salt, note))
        others = meter.others()
        server = next(str(text) for text in live.described().values())
    return sizes, samples, server, others


async def _probe(
    connect: Callable[[Clock], Client],
    config: EngineConfig,
    options: LiveOptions,
    probes: tuple[int, int],
    salt: str,
    note: Any,
) -> tuple[EngineConfig, list[Sample]]:
    from marsbench.engine.live.calibrate import measure, plan, with_sizes_of
    from marsbench.engine.live.clock import Clock

    async with connect(Clock()) as client:
        sizes = await with_sizes_of(client, config)
        planned = plan(sizes, most_tokens=probes[0], repeats=probes[1])
        return sizes, await measure(
            client, sizes, planned, salt=salt, vocabulary=options.vocabulary, progress=note
        )


def draw(samples: Sequence[Sample], found: Fit) -> Figure:
    """Predicted against measured times per step, and relative errors by size."""
    from marsbench.report.chart import Chart, Line, Panel, Rule
    from marsbench.report.plot import plot
    from marsbench.report.style import Look, theme

    fitted, errors = [], []
    for kind, look in (("prefill", Look("#0072b2", "o")), ("decode", Look("#d55e00", "s"))):
        own = [k for k, sample in enumerate(samples) if sample.kind == kind]
        steps = [len(samples[k].steps) for k in own]
        measured = [samples[k].seconds / n * 1e3 for k, n in zip(own, steps, strict=True)]
        predicted = [found.predicted_s[k] / n * 1e3 for k, n in zip(own, steps, strict=True)]
        fitted.append(Line(kind, measured, predicted, look, joined=False))
        contexts = [float(samples[k].steps[-1][2]) for k in own]
        percent = [found.errors[k] * 100 for k in own]
        errors.append(Line(kind, contexts, percent, look, joined=False))
    every = [float(value) for line in fitted for value in line.x]
    equal = Line("equal", [min(every), max(every)], [min(every), max(every)], Look("#777777", ""))
    left = Panel(
        [*fitted, equal], "measured, ms per step", "fitted, ms per step", x_log=True, y_log=True
    )
    right = Panel(
        [*errors, Rule("none", 0.0)],
        "context of the step, tokens",
        "error of the fit, %",
        x_log=True,
    )
    title = f"error: median {found.error(50):.1%}, 95th percentile {found.error(95):.1%}"
    with theme():
        chart = Chart([left, right], columns=2, title=title)
        return plot(chart, "How well do the fitted step times meet those measured?")


def _as_json(
    out: Path, figure: Path, found: Fit, samples: Sequence[Sample], turn: TurnCost
) -> dict[str, Any]:
    return {
        "profile": str(out),
        "figure": str(figure),
        "coefficients": found.cost.to_dict(),
        "knee_tokens": found.knee_tokens,
        "delay_s": found.delay_s,
        "turn": turn._asdict(),
        "error": {
            kind or "all": {"p50": found.error(50, kind, samples), "p95": found.error(95, kind, samples)}
            for kind in ("", "prefill", "decode")
        },
        "samples": [
            {
                "kind": sample.kind,
                "steps": len(sample.steps),
                "first_step": list(sample.steps[0]),
                "measured_s": sample.seconds,
                "predicted_s": predicted,
            }
            for sample, predicted in zip(samples, found.predicted_s, strict=True)
        ],
    }  # fmt: skip


def _print(out: Path, figure: Path, found: Fit, samples: Sequence[Sample], turn: TurnCost) -> None:
    cost = found.cost
    per = (("new token", cost.c_tok), ("pair", cost.c_pair), ("token of KV read", cost.m_ctx),
           ("step", cost.o_step), ("sequence", cost.o_seq))  # fmt: skip
    for what, value in per:
        print(f"{value / 1e6:>14,.4f} us per {what}")
    if found.knee_tokens:
        print(f"steps of up to {found.knee_tokens} tokens cost as much as {found.knee_tokens}")
    print(
        f"{turn.fixed_ps / 1e9:>14,.4f} ms per turn and {turn.prompt_token_ps / 1e6:,.4f} us per prompt "
        "token on the way to the engine and back"
    )
    for kind in ("prefill", "decode"):
        count = sum(sample.kind == kind for sample in samples)
        p50, p95 = found.error(50, kind, samples), found.error(95, kind, samples)
        print(f"{kind}: {count} probes, relative error median {p50:.1%}, 95th percentile {p95:.1%}")
    print(f"profile: {out}\nfigure: {figure}")


def _note(text: str) -> None:
    print(f"... {text}", file=sys.stderr)
