"""Turns a profile into sessions: shape first, then tokens, tools and people, each from its stream.

Every quantity has its own random stream per session, so a changed parameter changes nothing
else, and profiles that share blocks share draws (a slow sandbox runs the same sessions).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from marsbench.core import Session, SharedPrefix, ToolCall, Turn
from workloads.synthetic.draws import Distribution, Floats, Ints, Quantiles, session_scores
from workloads.synthetic.profile import SessionProfile, load_profile
from workloads.synthetic.shipped import shipped

TYPICAL_TURNS = 45
"""Session length at which the length coupling of results is 1 (median of the SWE sessions)."""


class _Shape(NamedTuple):
    """The turns of a session, and what each of them calls."""

    first_class: Ints
    """Class index of each turn's first call; the number of classes where there is none."""
    request_start: npt.NDArray[np.bool_]
    call_turn: Ints
    call_class: Ints


@dataclass(frozen=True, slots=True)
class _Calls:
    tools: list[ToolCall]
    turn: Ints
    result_tokens: Ints


class Generator:
    """Draws sessions of one profile."""

    def __init__(self, profile: SessionProfile) -> None:
        self.profile = profile
        self._classes = profile.classes()
        self._child = (
            Generator(load_profile(shipped(profile.subagent))) if profile.subagent else None
        )
        self._compile_order()
        self._compile_tables()

    def session(self, session_id: str, seed: np.random.SeedSequence) -> Session:
        """Return one session; the same seed gives the same session."""
        streams = seed.spawn(5)
        shape_rng, token_rng, tool_rng, people_rng = (
            np.random.Generator(np.random.PCG64(stream)) for stream in streams[:4]
        )
        prefix_index = self._pick(self._prefix_cumulative, shape_rng.random())
        prefix = self.profile.shared_prefix[prefix_index]
        shape = self._shape(shape_rng)
        calls = self._calls(shape, tool_rng)
        output, resent = self._output(shape, token_rng)
        new_input, think = self._input(shape, calls, token_rng, people_rng)
        turns = self._turns(
            shape, calls, output, resent, new_input, think, prefix.tokens, people_rng
        )
        if self._child is not None:
            turns = self._with_children(turns, session_id, streams[4])
        return Session(
            session_id=session_id,
            turns=tuple(turns),
            agent=self.profile.agent,
            model=self.profile.model,
            shared_prefix=SharedPrefix(prefix.id, prefix.tokens),
        )

    # Compilation: distributions become tables, names become row numbers.

    def _compile_order(self) -> None:
        profile, classes = self.profile, self._classes
        self._chain = profile.chain()
        self._class_of_state = np.cumsum(
            [
                [profile.class_shares(state).get(name, 0.0) for name in classes]
                for state in self._chain.states
            ],
            axis=1,
        )
        steady = profile.tools.extra_calls
        early = steady | (profile.opening.extra_calls if profile.opening else {})
        extra = [table.get(name, (1.0,)) for table in (steady, early) for name in classes]
        width = max(len(row) for row in extra)
        padded = [[*row, *(0.0,) * (width - len(row))] for row in extra]
        self._extra = np.cumsum(padded, axis=1) / np.sum(padded, axis=1)[:, None]
        follow = np.eye(len(classes))
        for name, shares in profile.tools.extra_class.items():
            follow[classes.index(name)] = [shares.get(other, 0.0) for other in classes]
        self._follow = np.cumsum(follow / follow.sum(axis=1, keepdims=True), axis=1)
        weights = np.cumsum([variant.weight for variant in profile.shared_prefix])
        self._prefix_cumulative = weights / weights[-1]
        self._names = [profile.tools.names.get(name, "Bash") for name in classes]

    def _compile_tables(self) -> None:
        profile, classes = self.profile, self._classes
        rows = (*classes, "end")
        output, results, duration = (
            profile.output_tokens,
            profile.result_tokens,
            profile.duration_s,
        )
        self._output_table = Quantiles([output.by_class[name] for name in rows])
        self._output_share = _shares(output.session_share, rows)
        self._visible = np.array([profile.resent_output.visible.get(n, (0.0, 0.0)) for n in rows])
        exponents = results.length_exponent
        self._length_exponent = np.array([exponents.get(name, 0.0) for name in classes])
        self._result_cap = np.array([results.by_class[name].high for name in classes])
        steady = [results.by_class[name] for name in classes]
        early = profile.opening.by_class if profile.opening else {}
        opening = [early.get(name, results.by_class[name]) for name in classes]
        self._result_table = Quantiles([*steady, *opening])
        self._result_share = _shares(results.session_share, classes)
        self._duration_table = Quantiles([duration.by_class[name] for name in classes])
        self._duration_share = _shares(duration.session_share, classes)
        limits = duration.timeout_s
        self._timeout = np.array([limits.get(n, limits["default"]) for n in classes])
        self._cpu_share = np.array([profile.cpu[name].share for name in classes])
        self._cores = [profile.cpu[name].cores for name in classes]
        errors = profile.error_share
        self._error = np.array([errors.get(n, errors.get("default", 0.0)) for n in classes])
        self._singles: dict[str, Quantiles] = {
            name: Quantiles([spec]) for name, spec in _singles(profile).items()
        }

    # Drawing.

    def _draw(self, what: str, rng: np.random.Generator, num: int = 1) -> Floats:
        return self._singles[what](np.zeros(num, dtype=np.int64), rng.standard_normal(num))

    def _pick(self, cumulative: Floats, uniform: float) -> int:
        return min(int(np.searchsorted(cumulative, uniform, "right")), len(cumulative) - 1)

    def _shape(self, rng: np.random.Generator) -> _Shape:
        total = max(1, round(float(self._draw("turns", rng)[0])))
        none = len(self._classes)
        lengths = self._request_lengths(total, rng)
        states = np.full(total, -1)
        request_start = np.zeros(total, dtype=np.bool_)
        uniforms = rng.random(total).tolist()
        begin = 0
        for length in lengths:
            request_start[begin] = True
            end = begin + length - 1
            states[begin:end] = self._chain.path(length - 1, uniforms[begin:end])
            begin += length
        picks = rng.random(total)
        first = (picks[:, None] > self._class_of_state[states]).sum(axis=1)
        first = np.where(states < 0, none, np.minimum(first, none - 1))
        return self._with_extra_calls(first, request_start, rng)

    def _early(self, turn: Ints, uniform: Floats) -> npt.NDArray[np.bool_]:
        """Return which draws come from the block of opening turns."""
        if self.profile.opening is None:
            return np.zeros(len(turn), dtype=np.bool_)
        return np.asarray(uniform < np.exp(-turn / self.profile.opening.turns))

    def _request_lengths(self, total: int, rng: np.random.Generator) -> list[int]:
        if self.profile.requests is None:
            return [total]
        lengths: list[int] = []
        left = total
        while left > 0:
            drawn = max(1, round(float(self._draw("request_turns", rng)[0])))
            lengths.append(min(drawn, left))
            left -= lengths[-1]
        return lengths

    def _with_extra_calls(
        self, first: Ints, request_start: npt.NDArray[np.bool_], rng: np.random.Generator
    ) -> _Shape:
        tool_turns = np.flatnonzero(first < len(self._classes))
        kind = first[tool_turns]
        row = kind + len(self._classes) * self._early(tool_turns, rng.random(len(kind)))
        extra = (rng.random(len(kind))[:, None] > self._extra[row]).sum(axis=1)
        extra = np.minimum(extra, self._extra.shape[1] - 1)
        extra_turn = np.repeat(tool_turns, extra)
        extra_kind = np.repeat(kind, extra)
        follow = (rng.random(len(extra_kind))[:, None] > self._follow[extra_kind]).sum(axis=1)
        follow = np.minimum(follow, len(self._classes) - 1)
        turn = np.concatenate([tool_turns, extra_turn])
        order = np.argsort(turn, kind="stable")
        kinds = np.concatenate([kind, follow])
        return _Shape(first, request_start, turn[order], kinds[order])

    def _calls(self, shape: _Shape, rng: np.random.Generator) -> _Calls:
        kind, num = shape.call_class, len(shape.call_class)
        speed_score, result_score = rng.standard_normal(2).tolist()
        noise = rng.standard_normal((2, num))
        uniforms = rng.random((2, num))
        wall = self._duration_table(
            kind, session_scores(noise[0], speed_score, self._duration_share[kind])
        )
        wall = wall / self.profile.sandbox_speed
        timed_out = wall >= self._timeout[kind]
        wall = np.minimum(wall, self._timeout[kind])
        results = self._results(shape, noise[1], result_score, uniforms[0])
        error = timed_out | (uniforms[1] < self._error[kind])
        cores = [self._cores[k] for k in kind.tolist()]
        cpu = wall * self._cpu_share[kind] * np.array(cores)
        # Microseconds: beyond the last digits in which mathematical libraries may differ.
        tools = [
            ToolCall(self._names[k], self._classes[k], w, c, n, r, e)
            for k, w, c, n, r, e in zip(
                kind.tolist(),
                np.round(wall, 6).tolist(),
                np.round(cpu, 6).tolist(),
                cores,
                results.tolist(),
                error.tolist(),
                strict=True,
            )
        ]
        return _Calls(tools, shape.call_turn, results)

    def _results(self, shape: _Shape, noise: Floats, session: float, uniform: Floats) -> Ints:
        kind = shape.call_class
        row = kind + len(self._classes) * self._early(shape.call_turn, uniform)
        scores = session_scores(noise, session, self._result_share[kind])
        scale = (len(shape.first_class) / TYPICAL_TURNS) ** self._length_exponent
        capped = np.minimum(self._result_table(row, scores) * scale[kind], self._result_cap[kind])
        return np.asarray(np.rint(capped), dtype=np.int64)

    def _output(self, shape: _Shape, rng: np.random.Generator) -> tuple[Ints, list[float]]:
        spec = self.profile.resent_output
        row, num = shape.first_class, len(shape.first_class)
        session = float(rng.standard_normal())
        noise = rng.standard_normal((2, num))
        uniform = rng.random(num)
        scores = session_scores(noise[0], session, self._output_share[row])
        drift = self.profile.output_tokens.drift * (np.arange(num) / max(num - 1, 1) - 0.5)
        drawn = self._output_table(row, scores) * np.exp(drift)
        output = np.maximum(np.rint(drawn), 1).astype(np.int64)
        if spec.visible:
            score = session_scores(noise[1], 0.0, spec.correlation**2)
            score = score + spec.correlation * scores
            visible = np.exp(self._visible[row, 0] + self._visible[row, 1] * score)
            resent = np.round(np.minimum(visible / output, 1.0), 4)
        else:
            resent = np.where(uniform < spec.verbatim, 1.0, spec.otherwise)
        return output, resent.tolist()

    def _input(
        self,
        shape: _Shape,
        calls: _Calls,
        token_rng: np.random.Generator,
        people_rng: np.random.Generator,
    ) -> tuple[list[int], list[float]]:
        """Return the new input tokens of each turn and the idle time after it."""
        num = len(shape.first_class)
        returned = np.zeros(num)
        np.add.at(returned, calls.turn, calls.result_tokens)
        new_input = self._draw("framing_tokens", token_rng, num)
        new_input[1:] += returned[:-1] * self.profile.result_tokens.to_prompt
        new_input[0] = self._draw("task_tokens", token_rng)[0]
        think = np.zeros(num)
        asks = np.flatnonzero(shape.request_start)[1:]
        if len(asks):
            new_input[asks] += self._draw("message_tokens", people_rng, len(asks))
            think[asks - 1] = self._draw("think_s", people_rng, len(asks))
        tokens = np.maximum(np.rint(new_input), 1).astype(np.int64)
        return tokens.tolist(), np.round(think, 3).tolist()

    def _turns(
        self,
        shape: _Shape,
        calls: _Calls,
        output: Ints,
        resent: list[float],
        new_input: list[int],
        think: list[float],
        prefix_tokens: int,
        rng: np.random.Generator,
    ) -> list[Turn]:
        """Return the turns in order; where the context gets too long it is compacted, or the session
        ends.
        """
        starts = np.searchsorted(calls.turn, np.arange(len(new_input) + 1)).tolist()
        limit, compaction = self.profile.max_context_tokens, self.profile.compaction
        turns: list[Turn] = []
        context = prefix_tokens
        threshold = self._draw("compact_at", rng)[0] if compaction else math.inf
        for index, tokens in enumerate(output.tolist()):
            new, drop = new_input[index], None
            if context + new + tokens > threshold and index > 0:
                drop = max(round(self._draw("compact_to", rng)[0]), prefix_tokens + 1)
                drop = drop if drop < context else None
                context = context if drop is None else drop
                threshold = self._draw("compact_at", rng)[0]
            if context + new + tokens > limit:
                if turns:
                    break
                new = max(1, limit - context - tokens)
            tools = tuple(calls.tools[starts[index] : starts[index + 1]])
            turns.append(Turn(new, tokens, resent[index], drop, None, tools, think[index]))
            context += new + round(resent[index] * tokens)
        return turns

    def _with_children(
        self, turns: list[Turn], session_id: str, seed: np.random.SeedSequence
    ) -> list[Turn]:
        """Return the turns with a child session for each sub-agent call, whose time replaces the
        call's own.
        """
        assert self._child is not None
        result: list[Turn] = []
        num = 0
        for turn in turns:
            children = []
            for tool in turn.tools:
                if tool.tool_class == "subagent":
                    num += 1
                    child_id = f"{session_id}/subagent-{num}"
                    children.append(self._child.session(child_id, seed.spawn(1)[0]))
            result.append(_with(turn, tuple(children)) if children else turn)
        return result


def _with(turn: Turn, children: tuple[Session, ...]) -> Turn:
    return Turn(
        new_input_tokens=turn.new_input_tokens,
        output_tokens=turn.output_tokens,
        resent_output=turn.resent_output,
        drop_context_to=turn.drop_context_to,
        kept_prefix_tokens=turn.kept_prefix_tokens,
        tools=turn.tools,
        think_s=turn.think_s,
        children=children,
    )


def _shares(by_class: dict[str, float], rows: tuple[str, ...]) -> Floats:
    return np.array([by_class.get(name, by_class.get("default", 0.0)) for name in rows])


def _singles(profile: SessionProfile) -> dict[str, Distribution]:
    singles = {
        "turns": profile.turns,
        "task_tokens": profile.task_tokens,
        "framing_tokens": profile.framing_tokens,
    }
    if profile.requests is not None:
        singles["request_turns"] = profile.requests.turns
        singles["message_tokens"] = profile.requests.message_tokens
        singles["think_s"] = profile.requests.think_s
    if profile.compaction is not None:
        singles["compact_at"] = profile.compaction.at_tokens
        singles["compact_to"] = profile.compaction.to_tokens
    return singles
