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
from marsbench.engine.profile import PS_PER_US, Profile, load_profile
from marsbench.errors import ResultsError


def profile_of(
    base: Profile,
    config: EngineConfig,
    found: Fit,
    samples: Sequence[Sample],
    *,
    turn: TurnCost,
    name: str,
    measured_on: str,
    date: dt.date,
) -> dict[str, Any]:
    """Content of a profile file. ``base`` lends the shape of the model, if it has one.

    ``measured_on`` says what was measured: the command line or address of the server.
    """
    counts = {kind: sum(s.kind == kind for s in samples) for kind in ("prefill", "decode")}
    source = (
        f"marsbench calibrate, {date:%Y-%m-%d}, host of the client {platform.platform()} "
        f"({platform.machine()}): {counts['prefill']} prefill and {counts['decode']} decode probes; "
        f"relative error of the fit: median {found.error(50):.1%}, 95th percentile "
        f"{found.error(95):.1%}; {found.delay_s * 1e3:.2f} ms of each time to a first token are no "
        f"step's and are in `turn`. Of this one machine. Server: {_without_folders(measured_on)}"
    )
    model = {} if base.model is None else {"model": base.model.model_dump(exclude_defaults=True)}
    around = (
        "the same prefill probes, one at a time: the client's time to a first token less the server's "
        "own from first schedule, and what of that no step explains"
    )
    sources = {
        "coefficients": source,
        "turn": around,
        "engine": f"flags of the measured server, as {base.name}'s",
    }
    if base.model is not None:
        sources["model"] = base.sources["model"]
    return {
        "name": name,
        "summary": f"{base.summary}; step times fitted to a running engine",
        **model,
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


def _without_folders(command: str) -> str:
    """A command line with the names of files alone: folders say nothing to another machine."""
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
