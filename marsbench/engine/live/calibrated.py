"""From measurements to a profile: the fitted step cost with the engine it was measured on."""

from __future__ import annotations

import datetime as dt
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from marsbench.engine.base import EngineConfig
from marsbench.engine.cost import TurnCost
from marsbench.engine.fit import Fit, Sample
from marsbench.engine.hardware import PS_PER_US, Model
from marsbench.engine.live.options import LiveOptions
from marsbench.engine.live.tiny_model import tiny_layers, tiny_misfit
from marsbench.engine.profile import Profile, load_profile
from marsbench.errors import ConfigError, ResultsError

FIT_MEDIAN, FIT_P95 = 0.10, 0.40
"""Relative errors beyond which a fit is doubtful: on an idle machine it has 1-5 % and 4-21 %."""


def fit_warning(found: Fit) -> str | None:
    """Return one line if the fitted step times miss the measured ones by more than a good fit does,
    else None.
    """
    median, p95 = found.error(50), found.error(95)
    if median <= FIT_MEDIAN and p95 <= FIT_P95:
        return None
    return (
        f"the fit misses the measured times by {median:.0%} (median) and {p95:.0%} (95th percentile), "
        f"beyond {FIT_MEDIAN:.0%} and {FIT_P95:.0%}: the machine was busy, or these terms do not "
        "describe the server; repeat it, with more --repeats"
    )


def started_model(base: Profile, options: LiveOptions) -> Model | None:
    """Return the shape of the model that is measured, as far as it is known: the tiny model's if
    that was started.

    ConfigError if the tiny model is started for a profile of another one.
    """
    if base.model is None or options.url or options.model:
        return base.model
    layers = tiny_layers(options.layers, base.model)
    model = base.model.model_copy(update={"layers": layers})
    if (misfit := tiny_misfit(layers, model)) is not None:
        raise ConfigError(f"calibrate: {misfit}")
    return model


def profile_of(
    base: Profile,
    config: EngineConfig,
    found: Fit,
    samples: Sequence[Sample],
    *,
    turn: TurnCost,
    model: Model | None,
    others: float | None,
    name: str,
    measured_on: str,
    date: dt.date,
) -> dict[str, Any]:
    """Return the content of a profile file for a fit. ``base`` lends its flags, ``model`` is the
    shape that was measured.

    ``measured_on`` says what was measured: the command line or address of the server; ``others`` what
    share of the client's machine other programs used meanwhile.
    """
    counts = {kind: sum(s.kind == kind for s in samples) for kind in ("prefill", "decode")}
    source = (
        f"marsbench calibrate, {date:%Y-%m-%d}, host of the client {platform.platform()} "
        f"({platform.machine()}): {counts['prefill']} prefill and {counts['decode']} decode probes; "
        f"relative error of the fit: median {found.error(50):.1%}, 95th percentile "
        f"{found.error(95):.1%}; {found.delay_s * 1e3:.2f} ms of each time to a first token are no "
        f"step's and are in `turn`. {_load(others)}Of this one machine. Server: {_without_folders(measured_on)}"
    )
    shape = {} if model is None else {"model": model.model_dump(exclude_defaults=True)}
    around = (
        "the same prefill probes, one at a time: the client's time to a first token less the server's "
        "own from first schedule, and what of that no step explains"
    )
    sources = {
        "coefficients": source,
        "turn": around,
        "engine": f"flags of the measured server, as {base.name}'s",
    }
    if model is not None:
        sources["model"] = base.sources["model"]
        if model != base.model:
            sources["model"] += f"; here with {model.layers} layers, as it was started"
    return {
        "name": name,
        "summary": f"{base.summary}; step times fitted to a running engine",
        **shape,
        "coefficients": found.cost.to_dict(),
        "turn": {
            "fixed_us": turn.fixed_ps / PS_PER_US,
            "prompt_token_us": turn.prompt_token_ps / PS_PER_US,
        },
        "engine": {
            "block_size": config.block_size,
            "max_num_batched_tokens": config.max_num_batched_tokens,
            "max_num_seqs": config.max_num_seqs,
            "max_model_len": config.max_model_len,
        },
        "num_kv_tokens": config.num_blocks * config.block_size,
        "kv_source": "as the measured server reported it or was started with",
        "sources": sources,
    }


def _load(others: float | None) -> str:
    """Say in a sentence what else kept the machine busy during the measurement."""
    if others is None:
        return ""
    return f"Other programs used {others:.0%} of the machine's cores meanwhile. "


def _without_folders(command: str) -> str:
    """Return a command line without its folders, which say nothing to another machine; names of
    files stay.
    """
    words = command.split()
    return " ".join(Path(word).name if word.startswith("/") else word for word in words)


def write_profile(path: Path, content: dict[str, Any]) -> Profile:
    """Write a profile file and read it back, so that what is on disk is known to load."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=100)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ResultsError(f"cannot write {path}: {error.strerror or error}") from error
    return load_profile(path)
