"""How long an engine step takes, in integer picoseconds, from four counts of the step.

``step = c_tok * tokens + weights[tokens] + c_pair * pairs + m_ctx * ctx + o_step + o_seq * seqs``

- linear layers: computing per new token, plus that part of reading the weights which computing
  does not hide. ``weights`` is a table by tokens, so a roofline max(compute, read) is exact
  (the table is ``max(0, read - c_tok * n)``), and so is anything else a kernel does;
- attention: computing per (query, key) pair, plus reading KV. It is a sum because one of the two
  is small for every sequence: pairs decide a prefill, KV reads a decode. A single maximum over
  the whole step would let the KV reads of decodes hide behind the prefill chunk they share a
  step with; kernels run one after the other, so on hardware they add up;
- overhead: launch, scheduling and sampling.

The counts of a step that gives ``n`` new tokens to a sequence with ``c`` tokens in its cache are
summed over its sequences: ``tokens = n``, ``pairs = n*c + n*(n+1)/2``, ``ctx = c + n``.

Sliding-window layers are approximated: ``c_pair`` and ``m_ctx`` count full-attention layers only;
a windowed layer costs a full window of pairs per token (part of ``c_tok``) and a full window of
KV reads per sequence (part of ``o_seq``), also while the context is still shorter than the window.

The six coefficients are the fitted form too: a table measured on a real engine is turned into
coefficients and shares this class. Hot path: plain integers and no imports of ours but errors.
"""

# ruff: noqa: FURB136, PLR1730 - in this hot path a comparison beats a call of min or max

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import sqrt
from typing import NamedTuple

from marsbench.errors import ConfigError


class TurnCost(NamedTuple):
    """Time of a turn that no step takes: the way to the engine and back."""

    fixed_ps: int
    prompt_token_ps: int

    def delay_ps(self, prompt_tokens: int) -> int:
        """Return how long it takes, ps, until the engine has a turn that was sent, the way back
        included.
        """
        return self.fixed_ps + self.prompt_token_ps * prompt_tokens


class LinkCost(NamedTuple):
    """Time of a copy between GPU and host memory, picoseconds: a fixed part and one by its tokens."""

    h2d_token_ps: int
    d2h_token_ps: int
    latency_ps: int
    token_bytes: int = 0
    """Bytes that the KV of one token takes, summed over all GPUs."""


COEFFICIENTS = ("c_tok", "c_pair", "weights", "m_ctx", "o_step", "o_seq")


class StepCost:
    """Duration of engine steps. Immutable by convention; equal coefficients compare equal."""

    __slots__ = ("c_pair", "c_tok", "last_weight", "link", "m_ctx", "o_seq", "o_step", "weights")

    def __init__(
        self,
        c_tok: int,
        c_pair: int,
        weights: tuple[int, ...],
        m_ctx: int,
        o_step: int,
        o_seq: int,
        link: LinkCost | None = None,
    ) -> None:
        self.c_tok: int = c_tok
        """Picoseconds of computing per new token."""
        self.c_pair: int = c_pair
        """Picoseconds of attention per (query, key) pair."""
        self.weights: tuple[int, ...] = weights
        """ps of reading weights that ``c_tok * n`` does not hide, by tokens n of the step; the last
        entry holds beyond. It falls for a dense model, which computes while it reads, and rises
        for a mixture of experts, where more tokens touch more experts."""
        self.m_ctx: int = m_ctx
        """Picoseconds per token of KV that is read."""
        self.o_step: int = o_step
        """ps per step; at least 1, so that time always moves."""
        self.o_seq: int = o_seq
        """Picoseconds per sequence that is scheduled in the step."""
        self.last_weight: int = len(weights) - 1
        self.link: LinkCost | None = link
        """What copies to and from host memory take; None if the link is not known."""

    @classmethod
    def from_coefficients(
        cls,
        *,
        c_tok: int,
        c_pair: int,
        weights: Sequence[int],
        m_ctx: int,
        o_step: int,
        o_seq: int,
    ) -> StepCost:
        """Return a checked cost made of picosecond coefficients, which were derived or fitted."""
        for name, value, least in (
            ("c_tok", c_tok, 0),
            ("c_pair", c_pair, 0),
            ("m_ctx", m_ctx, 0),
            ("o_step", o_step, 1),
            ("o_seq", o_seq, 0),
        ):
            _check(name, value, least)
        if not weights:
            raise ConfigError("step cost: weights is empty; give at least one entry (ps)")
        for tokens, value in enumerate(weights):
            _check(f"weights[{tokens}]", value, 0)
        return cls(c_tok, c_pair, tuple(weights), m_ctx, o_step, o_seq)

    @classmethod
    def from_dict(cls, data: Mapping[str, object]) -> StepCost:
        """Return the cost that ``to_dict`` gave this; ConfigError names a missing, unknown or wrong
        field.
        """
        for name in COEFFICIENTS:
            if name not in data:
                raise ConfigError(f"step cost: {name} is missing (needs {', '.join(COEFFICIENTS)})")
        for name in data:
            if name not in COEFFICIENTS:
                raise ConfigError(
                    f"step cost: unknown field {name!r} (has {', '.join(COEFFICIENTS)})"
                )
        weights = data["weights"]
        if not isinstance(weights, (list, tuple)):
            raise ConfigError(
                f"step cost: weights must be a list of integers (ps), not {weights!r}"
            )
        return cls.from_coefficients(
            c_tok=_integer("c_tok", data["c_tok"]),
            c_pair=_integer("c_pair", data["c_pair"]),
            weights=[_integer("weights", value) for value in weights],
            m_ctx=_integer("m_ctx", data["m_ctx"]),
            o_step=_integer("o_step", data["o_step"]),
            o_seq=_integer("o_seq", data["o_seq"]),
        )

    def with_link(self, link: LinkCost | None) -> StepCost:
        """Return a cost with the same steps and this link to host memory."""
        return StepCost(
            self.c_tok, self.c_pair, self.weights, self.m_ctx, self.o_step, self.o_seq, link
        )

    def to_dict(self) -> dict[str, int | list[int]]:
        """Return the coefficients by name, ready for YAML or JSON."""
        return {
            "c_tok": self.c_tok,
            "c_pair": self.c_pair,
            "weights": list(self.weights),
            "m_ctx": self.m_ctx,
            "o_step": self.o_step,
            "o_seq": self.o_seq,
        }

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, StepCost):
            return NotImplemented
        return self.to_dict() == other.to_dict() and self.link == other.link

    def __hash__(self) -> int:
        return hash((self.c_tok, self.c_pair, self.weights, self.m_ctx, self.o_step, self.o_seq))

    def __repr__(self) -> str:
        return (
            f"StepCost(c_tok={self.c_tok}, c_pair={self.c_pair}, weights=<{len(self.weights)}>, "
            f"m_ctx={self.m_ctx}, o_step={self.o_step}, o_seq={self.o_seq})"
        )

    def step_ps(self, tokens: int, pairs: int, ctx: int, seqs: int) -> int:
        """Return how long one step with these counts takes, ps."""
        last = self.last_weight
        return (
            self.c_tok * tokens
            + self.weights[tokens if tokens < last else last]
            + self.c_pair * pairs
            + self.m_ctx * ctx
            + self.o_step
            + self.o_seq * seqs
        )

    def decode_run_ps(self, seqs: int, ctx: int, steps: int) -> int:
        """Return how long ``steps`` pure decode steps of ``seqs`` sequences take, ps.

        Step i costs ``step_ps(seqs, ctx + i*seqs, ctx + i*seqs, seqs)``: ``ctx`` counts the first
        step's new tokens. The sum is exact and in closed form, since each step costs the same
        amount more.
        """
        if steps <= 0:
            return 0
        slope = (self.c_pair + self.m_ctx) * seqs
        return steps * self.step_ps(seqs, ctx, ctx, seqs) + slope * (steps * (steps - 1) // 2)

    def decode_steps_until(self, seqs: int, ctx: int, budget_ps: int, max_steps: int) -> int:
        """Return the smallest number of decode steps that lasts ``budget_ps`` or longer; at most
        ``max_steps``, which is also the answer if none does.
        """
        if budget_ps <= 0 or max_steps <= 0:
            return 0
        slope = (self.c_pair + self.m_ctx) * seqs
        return _terms_until(self.step_ps(seqs, ctx, ctx, seqs), slope, budget_ps, max_steps)


def _terms_until(start: int, slope: int, target: int, most: int) -> int:
    """Smallest n with ``n*start + slope*n*(n-1)/2 >= target`` (start >= 1), at most ``most``.

    The float root of the quadratic is off by rounding only; integers settle it.
    """
    linear = start - 0.5 * slope
    far = sqrt(linear * linear + 2.0 * slope * target)
    # Two forms of one root: each is free of cancellation on its side.
    n = int(2.0 * target / (linear + far)) if linear > 0.0 else int((far - linear) / slope)
    if n > most:
        n = most
    while n > 0 and n * start + slope * (n * (n - 1) // 2) >= target:
        n -= 1
    while n < most and n * start + slope * (n * (n - 1) // 2) < target:
        n += 1
    return n


def _check(name: str, value: int, least: int) -> None:
    if value < least:
        raise ConfigError(f"step cost: {name} is {value}; it must be at least {least} (ps)")


def _integer(name: str, value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise ConfigError(f"step cost: {name} must be an integer (ps), not {value!r}")
    return value
