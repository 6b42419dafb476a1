"""Fits a step cost to measured durations: non-negative least squares on relative errors.

Errors are relative to what the fit predicts, found by solving again with the last prediction as
scale. Relative to what was measured, a slow measurement would count less than a quick one, and of
times that scatter by a fifth the fit would be a tenth too quick.

``step = c_tok * max(tokens, knee) + c_pair * pairs + m_ctx * ctx + o_step + o_seq * seqs``

``knee`` is where computing begins to hide the reading of weights (a roofline); it is the one
coefficient that is not linear, so it is searched. A measurement that waited for a first token has a
part that no step explains (work before and after the step): ``delay_s``, fitted with the rest and
not part of the step cost. What a turn takes around that, on its way to the engine and back, is
fitted apart (``turn_cost``), by prompt length: prompts are sent, parsed and hashed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from marsbench.core import PS_PER_S, to_s
from marsbench.engine.cost import StepCost, TurnCost
from marsbench.errors import EngineError

Counts = tuple[int, int, int, int]
"""(tokens, pairs, ctx, seqs) of one step, as ``StepCost.step_ps`` takes them."""
NAMES = ("c_tok", "c_pair", "m_ctx", "o_step", "o_seq", "delay")
MOST_KNEE = 4096
ROUNDS = 4
"""Solutions, each scaled by the prediction of the one before; the first by the measurements."""


@dataclass(frozen=True, slots=True)
class Sample:
    """Some steps and how long they took together."""

    kind: str
    """prefill | decode"""
    steps: tuple[Counts, ...]
    seconds: float
    first_tokens: int = 0
    """1 if the time runs to a first token, so that ``delay_s`` is in it."""
    around: tuple[tuple[int, float], ...] = ()
    """For each first token: prompt tokens, and the client's time to it beyond ``seconds``."""


@dataclass(frozen=True, slots=True)
class Fit:
    """A fitted cost and how well it does."""

    cost: StepCost
    knee_tokens: int
    delay_s: float
    predicted_s: tuple[float, ...]
    """The predicted time of each sample, in the order of the samples."""
    errors: tuple[float, ...]
    """The relative error of each sample: predicted / measured - 1."""

    def error(self, percent: float, kind: str = "", samples: Sequence[Sample] = ()) -> float:
        """Return a percentile of the absolute relative errors, of all samples or of those of one
        kind.
        """
        chosen = [
            abs(error)
            for index, error in enumerate(self.errors)
            if not kind or samples[index].kind == kind
        ]
        return float(np.percentile(chosen, percent)) if chosen else float("nan")


def fit(samples: Sequence[Sample]) -> Fit:
    """Find the cost that explains the samples best; EngineError if they do not determine it.

    A knee is taken only where it explains clearly more than none, because it costs a coefficient.
    """
    for kind in ("prefill", "decode"):
        if sum(sample.kind == kind for sample in samples) < 3:
            raise EngineError(f"calibration: needs at least 3 {kind} measurements")
    seconds = np.array([sample.seconds for sample in samples])
    if (seconds <= 0).any():
        raise EngineError("calibration: a measurement took no time at all")
    plain, plain_loss = _solve(samples, seconds, 0)
    best, best_loss, best_knee = plain, plain_loss, 0
    for knee in _knees(samples):
        found, loss = _solve(samples, seconds, knee)
        if loss < best_loss and loss < 0.9 * plain_loss:
            best, best_loss, best_knee = found, loss, knee
    return _made(samples, seconds, best, best_knee)


def turn_cost(samples: Sequence[Sample], delay_s: float = 0.0) -> TurnCost:
    """Estimate what a turn takes beside its steps: a fixed time (``delay_s`` of it found by
    ``fit``) and a time per prompt token. EngineError if nothing was measured.

    Of repetitions of one size the median counts, since a single one may have met anything.
    """
    found: dict[int, list[float]] = {}
    for sample in samples:
        for prompt_tokens, seconds in sample.around:
            found.setdefault(prompt_tokens, []).append(seconds)
    if not found:
        raise EngineError("calibration: no time around a first token was measured")
    sizes = np.array(list(found), dtype=np.float64)
    medians = np.maximum([np.median(times) for times in found.values()], 0.0)
    rows = np.column_stack([np.ones(len(sizes)), sizes])
    width = np.linalg.norm(rows, axis=0)
    answer, _ = nnls(rows / width, medians)
    fixed_s, prompt_token_s = answer / width
    return TurnCost(round((fixed_s + delay_s) * PS_PER_S), round(prompt_token_s * PS_PER_S))


def _knees(samples: Sequence[Sample]) -> list[int]:
    """Tokens at which computing may begin to dominate: sizes between those that were measured."""
    sizes = {step[0] for sample in samples for step in sample.steps}
    top = min(max(sizes), MOST_KNEE)
    return [int(k) for k in np.unique(np.geomspace(2, top, 40).round()) if 2 <= k <= top]


def _solve(
    samples: Sequence[Sample], seconds: NDArray[np.float64], knee: int
) -> tuple[NDArray[np.float64], float]:
    rows = np.array([_row(sample, knee) for sample in samples])
    scale = seconds
    for _ in range(ROUNDS):
        scaled = rows / scale[:, None]
        width = np.maximum(np.linalg.norm(scaled, axis=0), 1e-300)
        found, _ = nnls(scaled / width, seconds / scale)
        answer = found / width
        scale = np.maximum(rows @ answer, 1e-3 * seconds)
    loss = float(np.linalg.norm(seconds / scale - 1.0))
    return answer, loss


def _row(sample: Sample, knee: int) -> list[float]:
    steps = sample.steps
    return [
        float(sum(max(step[0], knee) for step in steps)),
        float(sum(step[1] for step in steps)),
        float(sum(step[2] for step in steps)),
        float(len(steps)),
        float(sum(step[3] for step in steps)),
        float(sample.first_tokens),
    ]


def _made(
    samples: Sequence[Sample],
    seconds: NDArray[np.float64],
    answer: NDArray[np.float64],
    knee: int,
) -> Fit:
    ps = dict(zip(NAMES, (round(value * PS_PER_S) for value in answer), strict=True))
    c_tok = ps["c_tok"]
    cost = StepCost.from_coefficients(
        c_tok=c_tok,
        c_pair=ps["c_pair"],
        weights=[c_tok * (knee - tokens) for tokens in range(knee)] + [0],
        m_ctx=ps["m_ctx"],
        o_step=max(1, ps["o_step"]),
        o_seq=ps["o_seq"],
    )
    delay_s = float(answer[-1])
    predicted = tuple(
        to_s(sum(cost.step_ps(*step) for step in sample.steps)) + delay_s * sample.first_tokens
        for sample in samples
    )
    errors = tuple(p / float(m) - 1.0 for p, m in zip(predicted, seconds, strict=True))
    return Fit(cost, knee, delay_s, predicted, errors)
