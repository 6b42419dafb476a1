#!/usr/bin/env python3
"""Does the name of a tool tell how long its call takes, and is that worth anything to a scheduler?

    python results/reference/tool_names/study.py --workload swe-bench --workload hybrid
    python results/reference/tool_names/study.py --trace sessions.jsonl.gz --write

Every number is out of fold: a call is predicted from other sessions only, never from its own.
A predictor is a weighted sample of training durations. ``names`` takes calls of the same tool,
``shrunk`` mixes them with all calls as ``mars_impl.estimate.GapModel`` does (a tool's own n calls
count n / (n + prior)), ``elapsed`` keeps only durations above what the call has run for.

Three questions, with 95 % bootstrap intervals over sessions:

- prediction: error of the log of what remains of a call after 0, 1, 5 and 20 s;
- retention, a ski rental: holding the KV cache of a waiting session costs 1 a second, dropping it
  costs b seconds (the break-even time) on return; a policy holds up to a deadline that it learns.
  Regret is the cost above that of knowing each duration;
- dispatch: two calls, one free slot: how much of the avoidable wait goes when the call with the
  lower expected duration runs first.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from words import text

from marsbench.core import Session, ToolCall
from marsbench.errors import ConfigError, MarsbenchError, TraceError
from marsbench.trace.source import RecordedWorkload, open_workload

ROOT = Path(__file__).resolve().parents[3]
OUT = Path(__file__).with_name("tool_names")
SHORTEST_S = 1e-3
"""Shorter calls count as this long: the clock of recorded traces."""
PRIOR_CALLS = 30
"""Weight of all tools beside a tool's own calls: MARS's ``estimate.TOOL_PRIOR_CALLS``."""
ELAPSED_S = (0.0, 1.0, 5.0, 20.0)
BREAK_EVEN_S = (1.0, 5.0, 20.0)
DEADLINES_S = np.concatenate(([0.0], np.geomspace(0.01, 1000.0, 101), [np.inf]))
NEVER_S = 1e9
"""In place of an infinite deadline in sums: no call is cut by it, so that it is never paid."""
NUM_BOOTSTRAP = 2000
NUM_PARTNERS = 20
FEWEST_CALLS = 30
"""Calls that must remain after an elapsed time for scores to say anything."""
LOG_NORMAL = "name, shrunk, log-normal"

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


class Calls(NamedTuple):
    """Tool calls as columns; sessions, names and classes are numbered from 0."""

    seconds: Floats
    session: Ints
    name: Ints
    tool_class: Ints


class Key(NamedTuple):
    """What a predictor looks at."""

    label: str
    column: str
    """A column of ``Calls``; "" for none."""
    prior: float


NONE = Key("no name", "", 0.0)
KEYS = (
    NONE,
    Key("name", "name", 0.0),
    Key("name, shrunk", "name", PRIOR_CALLS),
    Key("class", "tool_class", 0.0),
    Key("class, shrunk", "tool_class", PRIOR_CALLS),
)


@dataclass(frozen=True, slots=True)
class WeightedDurations:
    """Training durations in ascending order and their weights, summing to 1."""

    seconds: Floats
    weights: Floats

    def after(self, elapsed_s: float) -> WeightedDurations:
        """What remains of calls that have run so long; all of them if none ran longer."""
        left = (self.seconds > elapsed_s) & (self.weights > 0)
        if not left.any():
            return self
        weights = self.weights[left]
        return WeightedDurations(self.seconds[left] - elapsed_s, weights / weights.sum())

    def median_s(self) -> float:
        """The shortest duration that half of the weight does not exceed."""
        reached = np.cumsum(self.weights) >= 0.5 - 1e-12
        return float(self.seconds[int(np.argmax(reached))])

    def mean_s(self) -> float:
        """Expected duration."""
        return float(self.weights @ self.seconds)

    def mean_log(self) -> float:
        """Expected log duration."""
        return float(self.weights @ np.log(np.maximum(self.seconds, SHORTEST_S)))

    def deadline_s(self, break_even_s: float, choices_s: Floats) -> float:
        """The deadline of least expected cost; the shortest such."""
        returned = np.searchsorted(self.seconds, choices_s, side="right")
        spent = np.concatenate(([0.0], np.cumsum(self.weights * self.seconds)))[returned]
        late = 1.0 - np.concatenate(([0.0], np.cumsum(self.weights)))[returned]
        costs = spent + late * (np.minimum(choices_s, NEVER_S) + break_even_s)
        return float(choices_s[int(np.argmin(np.round(costs, 9)))])


def samples(seconds: Floats, key: Ints, num_keys: int, prior: float) -> list[WeightedDurations]:
    """The sample each key stands for; a key without training calls stands for all calls."""
    order = np.argsort(seconds, kind="stable")
    seconds, key = seconds[order], key[order]
    everyone = np.full(len(seconds), 1.0 / len(seconds))
    found = []
    for index in range(num_keys):
        own = key == index
        count = int(own.sum())
        if count == 0:
            found.append(WeightedDurations(seconds, everyone))
            continue
        share = count / (count + prior)
        found.append(WeightedDurations(seconds, share * own / count + (1 - share) * everyone))
    return found


def rental_cost(seconds: Floats, deadline_s: Floats | float, break_even_s: float) -> Floats:
    """Cost of holding until the deadline and dropping then, in seconds of holding."""
    returned = seconds <= deadline_s
    return np.where(returned, seconds, np.minimum(deadline_s, NEVER_S) + break_even_s)


def folds(num_sessions: int, num_folds: int, rng: np.random.Generator) -> Ints:
    """The fold of each session, sizes equal to within one."""
    return rng.permutation(num_sessions).astype(np.int64) % num_folds


def columns(sessions: list[Session]) -> tuple[Calls, int]:
    """The calls of all sessions, those of sub-agents under their parent; calls left out.

    A duration of exactly 0 means that the call has no recorded result (or that a sub-agent, which
    is a session of its own, takes its time).
    """
    names: dict[str, int] = {}
    classes: dict[str, int] = {}
    rows: list[tuple[float, int, int, int]] = []
    left_out = 0
    for number, session in enumerate(sessions):
        for call in _calls(session):
            if call.wall_s <= 0:
                left_out += 1
                continue
            name = names.setdefault(call.name, len(names))
            kind = classes.setdefault(call.tool_class, len(classes))
            rows.append((max(call.wall_s, SHORTEST_S), number, name, kind))
    if not rows:
        raise TraceError("no tool call has a duration; give a trace with timed tool calls")
    seconds, session_of, name_of, class_of = zip(*rows, strict=True)
    # Sessions without calls say nothing: number those that have some.
    _, session_numbers = np.unique(np.array(session_of, dtype=np.int64), return_inverse=True)
    as_ints = (np.array(column, dtype=np.int64) for column in (session_numbers, name_of, class_of))
    return Calls(np.array(seconds), *as_ints), left_out


def _calls(session: Session) -> Iterator[ToolCall]:
    for turn in session.turns:
        yield from turn.tools
        for child in turn.children:
            yield from _calls(child)


class Bootstrap:
    """Resamples sessions; the same resamples for every score, so differences are paired."""

    def __init__(self, session: Ints, rng: np.random.Generator) -> None:
        self._session = session
        self._num = int(session.max()) + 1
        draws = rng.multinomial(self._num, np.full(self._num, 1 / self._num), NUM_BOOTSTRAP)
        self._draws = np.vstack([np.ones(self._num), draws])  # the first is the data themselves

    def sums(self, losses: Floats, session: Ints | None = None) -> Floats:
        """Sum of the losses in the data, then in each resample."""
        where = self._session if session is None else session
        by_session = np.bincount(where, weights=losses, minlength=self._num)
        return np.asarray(self._draws @ by_session, dtype=np.float64)


def interval(values: Floats) -> list[float]:
    """[value, low, high]: the data's and the 95 % interval of the resamples'; [] if undefined."""
    if not np.isfinite(values[0]):
        return []
    low, high = np.nanpercentile(values[1:], [2.5, 97.5])
    return [round(float(value), 4) for value in (values[0], low, high)]


def over(part: Floats, whole: Floats) -> Floats:
    """Ratios; not a number where the whole is 0."""
    ratios = np.full(len(part), np.nan)
    np.divide(part, whole, out=ratios, where=whole != 0)
    return ratios


class Study:
    """Cross-validation of one set of calls."""

    def __init__(self, calls: Calls, num_folds: int, seed: int) -> None:
        num_sessions = int(calls.session.max()) + 1
        if not 2 <= num_folds <= num_sessions:
            raise ConfigError(
                f"{num_folds} folds of {num_sessions} sessions with tool calls; give 2 to "
                f"{num_sessions} folds"
            )
        rng = np.random.default_rng(seed)
        self.calls = calls
        self._num_folds = num_folds
        self._fold = folds(num_sessions, num_folds, rng)[calls.session]
        self._boot = Bootstrap(calls.session, rng)
        self._rng = rng
        self._fitted = {key: [self._fit(key, fold) for fold in range(num_folds)] for key in KEYS}

    def column(self, key: Key) -> Ints:
        """What the predictor is told of each call."""
        if not key.column:
            return np.zeros(len(self.calls.seconds), dtype=np.int64)
        return np.asarray(getattr(self.calls, key.column), dtype=np.int64)

    def _fit(self, key: Key, fold: int) -> list[WeightedDurations]:
        train = self._fold != fold
        column = self.column(key)
        num_keys = int(column.max()) + 1
        return samples(self.calls.seconds[train], column[train], num_keys, key.prior)

    def predict(self, key: Key, what: Callable[[WeightedDurations], float]) -> Floats:
        """A number of the sample that each call's fold and key stand for."""
        table = np.array([[what(sample) for sample in fitted] for fitted in self._fitted[key]])
        return np.asarray(table[self._fold, self.column(key)])

    def prediction(self, elapsed_s: float) -> dict[str, Any]:
        """Scores of predicting what remains of the calls that ran longer than ``elapsed_s``."""
        left = self.calls.seconds > elapsed_s
        if left.sum() < FEWEST_CALLS:
            return {"calls": int(left.sum()), "predictors": {}}
        rows: dict[str, tuple[Floats, Floats]] = {}
        for key in KEYS:
            rows[key.label] = (
                self.predict(key, WeightedDurations.median_s),
                self.predict(key, WeightedDurations.mean_log),
            )
            if elapsed_s:
                rows[_and_elapsed(key)] = (
                    self.predict(key, lambda sample: sample.after(elapsed_s).median_s()),
                    self.predict(key, lambda sample: sample.after(elapsed_s).mean_log()),
                )
            elif key.label == "name, shrunk":
                rows[LOG_NORMAL] = (np.exp(rows[key.label][1]), rows[key.label][1])
        return self._prediction_scores(rows, elapsed_s, left)

    def _prediction_scores(
        self, rows: dict[str, tuple[Floats, Floats]], elapsed_s: float, left: npt.NDArray[np.bool_]
    ) -> dict[str, Any]:
        actual_s = np.maximum(self.calls.seconds[left] - elapsed_s, SHORTEST_S)
        log, session = np.log(actual_s), self.calls.session[left]
        reference = _and_elapsed(NONE) if elapsed_s else NONE.label
        count = self._boot.sums(np.ones(len(log)), session)
        absolute, squared, pinball = {}, {}, {}
        for label, (median_s, mean_log) in rows.items():
            absolute[label] = self._boot.sums(np.abs(log - np.log(median_s[left])), session)
            squared[label] = self._boot.sums((log - mean_log[left]) ** 2, session)
            pinball[label] = self._boot.sums(np.abs(actual_s - median_s[left]) / 2, session)
        return {
            "calls": len(log),
            "reference": reference,
            "predictors": {
                label: {
                    "log_error": interval(over(absolute[label], count)),
                    "log_error_change": interval(over(absolute[label], absolute[reference]) - 1),
                    "pinball_s": interval(over(pinball[label], count)),
                    "pinball_change": interval(over(pinball[label], pinball[reference]) - 1),
                    "variance_explained": interval(1 - over(squared[label], squared[reference])),
                }
                for label in rows
            },
        }

    def retention(self, break_even_s: float) -> dict[str, Any]:
        """Regret of hold-or-drop policies; ``change`` is against the one learned deadline."""
        deadlines_s: dict[str, Floats | float] = {
            "always drop": 0.0,
            "always hold": np.inf,
            "deadline = break-even": break_even_s,
        }
        at_once = np.array([0.0, np.inf])
        for label, choices_s in (("at once", at_once), ("deadline", DEADLINES_S)):
            for key in KEYS:
                deadlines_s[f"{key.label}: {label}"] = self.predict(
                    key,
                    partial(
                        WeightedDurations.deadline_s, break_even_s=break_even_s, choices_s=choices_s
                    ),
                )
        reference = f"{NONE.label}: deadline"
        seconds = self.calls.seconds
        least = np.minimum(seconds, break_even_s)
        count, floor = self._boot.sums(np.ones(len(seconds))), self._boot.sums(least)
        regret = {
            label: self._boot.sums(rental_cost(seconds, at, break_even_s) - least)
            for label, at in deadlines_s.items()
        }
        return {
            "clairvoyant_cost_s": interval(over(floor, count)),
            "reference": reference,
            "policies": {
                label: {
                    "regret_s": interval(over(total, count)),
                    "regret_share": interval(over(total, floor)),
                    "regret_change": interval(over(total, regret[reference]) - 1),
                }
                for label, total in regret.items()
            },
        }

    def dispatch(self) -> dict[str, Any]:
        """Share of the avoidable wait that is avoided when two calls of different sessions meet."""
        num = len(self.calls.seconds)
        first = np.repeat(np.arange(num), NUM_PARTNERS)
        # Partners share a fold: between folds, the predictions of a key differ by the other
        # fold's own calls, which puts the longer call first more often than not.
        members = np.argsort(self._fold, kind="stable")
        sizes = np.bincount(self._fold, minlength=self._num_folds)
        starts = np.cumsum(sizes) - sizes
        fold = self._fold[first]
        second = members[starts[fold] + self._rng.integers(0, sizes[fold])]
        different = self.calls.session[first] != self.calls.session[second]
        first, second = first[different], second[different]
        session = self.calls.session[first]
        one, other = self.calls.seconds[first], self.calls.seconds[second]
        blind = self._boot.sums(np.abs(one - other) / 2, session)
        shares = {}
        for key in KEYS:
            expected_s = self.predict(key, WeightedDurations.mean_s)
            loss = avoidable_wait(one, other, expected_s[first], expected_s[second])
            shares[key.label] = interval(1 - over(self._boot.sums(loss, session), blind))
        return shares


def avoidable_wait(
    one: Floats, other: Floats, predicted: Floats, predicted_other: Floats
) -> Floats:
    """Wait above the least when the call with the lower prediction runs first; ties: a coin."""
    least = np.minimum(one, other)
    ran_first = np.where(predicted < predicted_other, one, other)
    ran_first = np.where(predicted == predicted_other, (one + other) / 2, ran_first)
    return ran_first - least


def _and_elapsed(key: Key) -> str:
    return "elapsed" if key == NONE else f"{key.label} + elapsed"


def study(spec: str, num_sessions: int, num_folds: int, seed: int) -> dict[str, Any]:
    """All scores of one workload or trace file, by names that say nothing of its content."""
    workload = open_workload(spec)
    recorded = isinstance(workload, RecordedWorkload)
    origin = workload.provenance.get("tools.wall_s", "recorded")
    if recorded and not origin.startswith("recorded"):
        raise TraceError(
            f"its tool durations are not measured ({origin}); a predictor of them would learn how "
            "they were made up: give a trace with recorded durations",
            path=spec,
        )
    sessions = workload.sessions(None if recorded else num_sessions, seed)
    calls, left_out = columns(sessions)
    done = Study(calls, num_folds, seed)
    return {
        "source": Path(spec).name if recorded else workload.name,
        "kind": "recorded" if recorded else "generated",
        **({"sha256": workload.sha256} if isinstance(workload, RecordedWorkload) else {}),
        "tool_durations": origin,
        "sessions": int(calls.session.max()) + 1,
        "calls": len(calls.seconds),
        "calls_left_out": left_out,
        "names": int(calls.name.max()) + 1,
        "classes": int(calls.tool_class.max()) + 1,
        "folds": num_folds,
        "seed": seed,
        "prediction": {f"{at:g}": done.prediction(at) for at in ELAPSED_S},
        "retention": {f"{at:g}": done.retention(at) for at in BREAK_EVEN_S},
        "dispatch": done.dispatch(),
    }


def compact(results: list[dict[str, Any]]) -> str:
    """JSON with one line for each interval."""
    lists = re.compile(r"\[\n\s*([-+.,\de\s]+?)\s*\]")  # no string holds a line break
    text = json.dumps(results, indent=1)
    return lists.sub(lambda found: f"[{' '.join(found[1].split())}]", text) + "\n"


def main() -> int:
    """Study what was asked for and print or write it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--workload", action="append", default=[], help="a generated workload")
    parser.add_argument("--trace", action="append", default=[], help="a trace file, any format")
    parser.add_argument("--sessions", type=int, default=300, help="of a generated workload (300)")
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--write", action="store_true", help=f"to {OUT.relative_to(ROOT)}.json, .md"
    )
    args = parser.parse_args()
    specs = [*args.trace, *args.workload]
    if not specs:
        parser.error("give at least one --workload or --trace")
    try:
        results = [study(spec, args.sessions, args.folds, args.seed) for spec in specs]
    except MarsbenchError as error:
        print(f"tool_names: {error}", file=sys.stderr)
        return 2
    report = text(results)
    print(report)
    if args.write:
        OUT.parent.mkdir(parents=True, exist_ok=True)
        OUT.with_suffix(".json").write_text(compact(results))
        OUT.with_suffix(".md").write_text(report)
    return 0


if __name__ == "__main__":
    sys.exit(main())
