"""The order of tools: a first-order Markov chain, conditioned on the number of turns drawn."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from itertools import accumulate

import numpy as np

from marsbench.errors import ConfigError
from workloads.synthetic.draws import Floats

START, END = "start", "end"
HORIZON = 64
"""Turns ahead after which the pull of the end no longer changes the next step."""


class ToolChain:
    """Draws the states of a request's tool turns so that the chain ends exactly after them.

    The number of turns and the order of tools were measured separately, so a free-running chain
    would give a geometric number of turns. Conditioned on ending after n turns, the step from
    state s with m turns to go has probability Q(s, t)·h(m-1, t) / h(m, s), where h(m, s) is the
    chance to end exactly m turns later (Doob's h-transform). What usually precedes the end
    (git, plan) therefore still does.
    """

    def __init__(self, rows: Mapping[str, Mapping[str, float]], where: str) -> None:
        self.states = tuple(name for name in rows if name != START)
        self._moves, self._end, self._start = _matrices(rows, self.states, where)
        self._steps = self._conditioned(where)

    def long_run(self) -> Floats:
        """Return the share of tool turns in each state far from start and end."""
        return _long_run(self._moves)

    def path(self, length: int, uniforms: Sequence[float]) -> list[int]:
        """Return indices into ``states`` of ``length`` tool turns that are followed by the end."""
        path: list[int] = []
        row = len(self.states)
        for position in range(length):
            to_go = min(length - position, HORIZON)
            row = bisect_right(self._steps[to_go][row], uniforms[position])
            path.append(row)
        return path

    def _conditioned(self, where: str) -> list[list[list[float]]]:
        """Return cumulative step probabilities by turns left to go and state (or start); the last
        entry, which is 1, is left out.
        """
        size = len(self.states)
        ends = self._end.copy()
        steps: list[list[list[float]]] = [[]]
        for to_go in range(1, HORIZON + 1):
            table = np.vstack([self._moves, self._start]) * ends
            totals = table.sum(axis=1, keepdims=True)
            if not (totals > 0).all():
                stuck = [*self.states, START][int(np.argmin(totals))]
                raise ConfigError(f"{where}: chain: {stuck!r} cannot end after {to_go} tool turns")
            table = table / totals
            steps.append([list(accumulate(row[: size - 1])) for row in table.tolist()])
            ends = self._moves @ ends
            ends = ends / ends.max()
        return steps


def tilted(
    rows: Mapping[str, Mapping[str, float]], mix: Mapping[str, float], where: str
) -> dict[str, dict[str, float]]:
    """Return the chain with its columns re-weighted so that its long-run shares of states become
    ``mix``.

    Keeps what a chain says about order where only shares are known for another agent. States
    with no share leave the chain.
    """
    states = [name for name in rows if name != START and mix.get(name, 0) > 0]
    unknown = sorted(set(mix) - set(rows))
    if unknown or not states:
        raise ConfigError(f"{where}: mix: no chain rows for {', '.join(unknown) or 'any state'}")
    target = np.array([mix[name] for name in states])
    target = target / target.sum()
    weights = np.ones(len(states))
    for _ in range(400):
        moves, _, _ = _matrices(_reweighted(rows, states, weights), states, where)
        found = _long_run(moves)
        if np.abs(found - target).max() < 1e-4:
            break
        weights = weights * (target / np.maximum(found, 1e-9)) ** 0.7
        weights = weights / weights.mean()
    return _reweighted(rows, states, weights)


def _long_run(moves: Floats) -> Floats:
    """Return the stationary shares of a chain that never ends."""
    moves = moves / moves.sum(axis=1, keepdims=True)
    size = len(moves)
    # Shares are balanced (s·P = s) and sum to one: one equation too many, solved together.
    equations = np.vstack([moves.T - np.eye(size), np.ones(size)])
    solution = np.linalg.lstsq(equations, np.append(np.zeros(size), 1.0), rcond=None)[0]
    return np.asarray(solution, dtype=np.float64)


def _reweighted(
    rows: Mapping[str, Mapping[str, float]], states: Sequence[str], weights: Floats
) -> dict[str, dict[str, float]]:
    result: dict[str, dict[str, float]] = {}
    for name in (START, *states):
        end = 0.0 if name == START else rows[name].get(END, 0.0)
        # A state never seen next still gets a little, or no weight could reach the target share.
        raw = {
            s: max(rows[name].get(s, 0.0), 1e-3) * w for s, w in zip(states, weights, strict=True)
        }
        total = sum(raw.values())
        # Six digits: linear algebra may differ in the last ones from machine to machine.
        moves = {s: round(value / total * (1 - end), 6) for s, value in raw.items()}
        result[name] = moves | {END: end}
    return result


def _matrices(
    rows: Mapping[str, Mapping[str, float]], states: Sequence[str], where: str
) -> tuple[Floats, Floats, Floats]:
    if START not in rows or not states:
        raise ConfigError(f"{where}: chain needs a row {START!r} and at least one state")
    for name, row in rows.items():
        strangers = sorted(set(row) - {*states, END})
        if strangers:
            raise ConfigError(f"{where}: chain row {name!r} names unknown {', '.join(strangers)}")
        if abs(sum(row.values()) - 1) > 0.02:
            raise ConfigError(f"{where}: chain row {name!r} sums to {sum(row.values()):.3f}, not 1")
    full = np.array([[rows[s].get(t, 0.0) for t in (*states, END)] for s in states])
    full = full / full.sum(axis=1, keepdims=True)
    start = np.array([rows[START].get(t, 0.0) for t in states])
    return full[:, :-1], full[:, -1], start / start.sum()
