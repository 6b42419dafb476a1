"""``marsbench calibrate``: measure a running engine's steps and write a profile of it."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from marsbench.errors import ConfigError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from marsbench.engine.base import EngineConfig
    from marsbench.engine.cost import TurnCost
    from marsbench.engine.fit import Fit, Sample
    from marsbench.engine.live.engine import LiveEngine
    from marsbench.engine.live.options import LiveOptions


def command(
    profile: Annotated[
        str | None, typer.Option(help="Whose flags and model the server has: name or YAML file.")
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="The profile to write.")] = Path(
        "calibrated.yaml"
    ),
    engine: Annotated[str, typer.Option(help="vllm or openai.")] = "vllm",
    config: Annotated[
        list[str] | None,
        typer.Option(
            "--config",
            "-c",
            metavar="KEY=VALUE",
            help="url=..., python=..., flags: num_blocks=512.",
        ),
    ] = None,
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
    from marsbench.engine.fit import fit, turn_cost
    from marsbench.engine.live.calibrated import profile_of, write_profile
    from marsbench.engine.live.options import split_options
    from marsbench.engine.profile import load_profile

    if out.suffix not in {".yaml", ".yml"}:
        raise ConfigError(f"--out {out}: a profile's file ends in .yaml")
    if out.exists() and not overwrite:
        raise ConfigError(f"--out {out}: exists; replace it with --overwrite")
    given: dict[str, Any] = {"engine": engine}
    if profile is not None:
        given["profile"] = [profile]
    overrides = [f"engine.params.{text}" for text in config or []]
    experiment = load_config(flags=given, overrides=overrides)
    options, flags = split_options(experiment.engine.params)
    base = load_profile(experiment.profile[0])
    flags_given = _flags(flags)
    note = (lambda _text: None) if quiet else _note
    sizes, samples, server = _measure(
        engine, options, base.engine_config(**flags_given), most_tokens, repeats, note
    )
    found = fit(samples)
    turn = turn_cost(samples, found.delay_s)
    content = profile_of(
        base, sizes, found, samples, turn=turn,
        name=out.stem, measured_on=server, date=dt.datetime.now(tz=dt.UTC).date(),
    )  # fmt: skip
    write_profile(out, content)
    figure = out.with_suffix(".png")
    draw(samples, found).savefig(figure)
    if as_json:
        print(json.dumps(_as_json(out, figure, found, samples, turn), indent=1))
    else:
        _print(out, figure, found, samples, turn)


def _flags(flags: dict[str, Any]) -> dict[str, int | str | bool]:
    from marsbench.experiment.wiring import check_flags

    return check_flags("-c", flags)


def _measure(
    engine: str,
    options: LiveOptions,
    config: EngineConfig,
    most_tokens: int,
    repeats: int,
    note: Any,
) -> tuple[EngineConfig, list[Sample], str]:
    """The engine's sizes, its measurements, and what it is."""
    import secrets

    from marsbench.engine import LIVE_ENGINES
    from marsbench.engine.live.engine import LiveEngine
    from marsbench.registry import unknown

    if engine not in LIVE_ENGINES:
        raise unknown("live engine", engine, LIVE_ENGINES)
    salt = secrets.token_hex(4)  # what an earlier calibration left in the cache is of no use
    with LiveEngine(engine, options, salt=salt, note=note) as live:
        sizes, samples = asyncio.run(
            _probe(live, config, options, most_tokens, repeats, salt, note)
        )
        server = next(str(text) for text in live.server_flags.values())
    return sizes, samples, server


async def _probe(
    live: LiveEngine,
    config: EngineConfig,
    options: LiveOptions,
    most_tokens: int,
    repeats: int,
    salt: str,
    note: Any,
) -> tuple[EngineConfig, list[Sample]]:
    from marsbench.engine.live.calibrate import measure, plan, with_sizes_of
    from marsbench.engine.live.clock import Clock

    async with live.connect(config)(Clock()) as client:
        sizes = await with_sizes_of(client, config)
        probes = plan(sizes, most_tokens=most_tokens, repeats=repeats)
        return sizes, await measure(
            client, sizes, probes, salt=salt, vocabulary=options.vocabulary, progress=note
        )


def draw(samples: Sequence[Sample], found: Fit) -> Figure:
    """Predicted against measured times per step, and relative errors by size."""
    import pandas as pd
    import seaborn as sns

    from marsbench.report.style import log_axis, panels, theme

    frame = pd.DataFrame(
        {
            "probe": [sample.kind for sample in samples],
            "measured": [sample.seconds / len(sample.steps) * 1e3 for sample in samples],
            "predicted": [
                seconds / len(sample.steps) * 1e3
                for sample, seconds in zip(samples, found.predicted_s, strict=True)
            ],
            "context": [sample.steps[-1][2] for sample in samples],
            "error": [error * 100 for error in found.errors],
        }
    )
    with theme():
        figure, (left, right) = panels(1, 2)
        colors = {"prefill": "#0173b2", "decode": "#d55e00"}
        look = {"hue": "probe", "style": "probe", "palette": colors, "s": 30}
        sns.scatterplot(frame, x="measured", y="predicted", ax=left, **look)
        low, high = frame["measured"].min(), frame["measured"].max()
        left.plot([low, high], [low, high], color="#777777", linewidth=1, zorder=0)
        left.set(xlabel="measured, ms per step", ylabel="fitted, ms per step")
        log_axis(left, "x")
        log_axis(left, "y")
        sns.scatterplot(frame, x="context", y="error", ax=right, legend=False, **look)
        right.axhline(0, color="#777777", linewidth=1, zorder=0)
        right.set(xlabel="context of the step, tokens", ylabel="error of the fit, %")
        log_axis(right, "x")
        figure.suptitle(
            f"error: median {found.error(50):.1%}, 95th percentile {found.error(95):.1%}",
            fontsize="medium",
        )
    return figure


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
