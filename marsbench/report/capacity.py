"""What a capacity search found: the load that each system sustains, with its interval.

``capacity.json`` holds every search (a system and a seed) with all that it tried. A search leaves a
bracket: the highest load that met the objective, and the next one, which did not. Over seeds the
capacity is the geometric mean of the brackets' middles, with Student's t over the logarithms
(``marsbench.report.intervals``), and never a narrower interval than the brackets themselves.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from marsbench.registry import unknown
from marsbench.report.compare import default_baseline
from marsbench.report.data import ReportData
from marsbench.report.intervals import MIN_SEEDS, over_seeds
from marsbench.report.table import number

FEW = 3.0
"""With fewer sessions than so many times those in the system at once, a cell never settles."""

Bound = Literal["", "at least", "below"]
Json = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number over seeds with its 95 % interval."""

    value: float
    low: float | None
    high: float | None
    """None below MIN_SEEDS, and where a search met an end of its ladder."""
    bound: Bound = ""
    """Whether the number is only a bound, because some search met an end of its ladder."""

    def text(self, scale: float = 1.0) -> str:
        """The number in words, without its interval."""
        return f"{self.bound} {number(self.value * scale)}".strip()

    def interval(self, scale: float = 1.0) -> str:
        """The interval in words; a dash without one."""
        if self.low is None or self.high is None:
            return "-"
        return f"{number(self.low * scale)}–{number(self.high * scale)}"


@dataclass(frozen=True, slots=True)
class SustainedRow:
    """One system of one scenario."""

    workload: str
    profile: str
    engine: str
    tool_cores: int
    host_kv_gib: float
    num_gpus: int
    system: str
    sustained: Estimate | None
    """Sessions per second, or agents in a closed loop; None where no load was sustained in any seed,
    or where seeds met both ends of their ladders."""
    load: float | None
    """The sustained rate as a share of stock vLLM's capacity; None in a closed loop."""
    sessions_per_hour: float | None
    agents: float | None
    """Sessions in the system at once, mean over time and seeds, where it sustains just that."""
    ratio: Estimate | None
    """The sustained load over the baseline's, seed by seed; None of the baseline itself, and where
    one of the two has no number."""
    baseline: str
    seeds: tuple[int, ...]
    evaluations: int
    """Cells that were run for it."""
    limit: str
    """What fails first above the capacity in most seeds: ``unstable``, or a bound of the objective."""
    notes: tuple[str, ...]

    @property
    def scenario(self) -> str:
        """What was run, in words."""
        cores = self.tool_cores or "unlimited"
        host = f" with {self.host_kv_gib:g} GiB of host memory" if self.host_kv_gib else ""
        return f"{self.workload} on {self.profile}{host} ({self.engine}, {cores} tool cores)"

    def to_json(self) -> dict[str, Any]:
        """All fields."""
        return asdict(self)


def rows_in(data: ReportData) -> list[tuple[Json, list[SustainedRow]]]:
    """The searches of these cells' scenario, each with its rows; none if the runs hold no search."""
    cell = data.cells.iloc[0]
    shown: list[tuple[Json, list[SustainedRow]]] = []
    for found in data.searches:
        host = (cell.get("host_kv_gib") or 0.0) if "host_kv_gib" in data.cells else 0.0
        here = [
            row for row in rows_of(found)
            if row.host_kv_gib == host and row.profile == str(cell["profile"]).partition(" with ")[0]
            and all(getattr(row, name) == cell[name] for name in ("workload", "engine", "tool_cores"))
        ]  # fmt: skip
        if here:
            shown.append((found, here))
    return shown


def rows_of(found: Json, baseline: str | None = None) -> list[SustainedRow]:
    """A row for each scenario and system, in the order in which they were searched."""
    rows = []
    for scenario in found["scenarios"]:
        searches: dict[str, list[Json]] = {}
        for search in scenario["searches"]:
            searches.setdefault(search["system"], []).append(search)
        if not searches:
            continue
        base = default_baseline(list(searches)) if baseline is None else baseline
        if base not in searches:
            raise unknown("baseline", base, searches)
        rows += [_row(found, scenario, name, searches, base) for name in searches]
    return rows


def estimate(brackets: Sequence[Json]) -> Estimate | None:
    """The capacity over seeds from their brackets, of which each has ``best`` and ``failed``."""
    if not brackets:
        return None
    bound = _bound(brackets)
    if bound is None:
        return None
    ends = [_ends(one) for one in brackets]
    logs = np.array([middle for middle, _ in ends])
    half = float(np.mean([reach for _, reach in ends]))
    return _estimate(logs, half, bound)


def ratio(ours: Sequence[Json], theirs: Sequence[Json]) -> Estimate | None:
    """The paired ratio of two systems' capacities, over the seeds that both have."""
    base = {one["seed"]: one for one in theirs}
    pairs = [(one, base[one["seed"]]) for one in ours if one["seed"] in base]
    sides = [_bound(side) for side in zip(*pairs, strict=True)] if pairs else []
    if not sides or None in sides or (sides[1] and sides[0] == sides[1]):
        return None
    upwards = {"at least": "below", "below": "at least"}
    bounds = {sides[0] or "", upwards.get(sides[1] or "", "")} - {""}
    if len(bounds) > 1:
        return None
    bound: Bound = "at least" if "at least" in bounds else "below" if bounds else ""
    ends = [(_ends(one), _ends(other)) for one, other in pairs]
    logs = np.array([one[0] - other[0] for one, other in ends])
    half = float(np.mean([one[1] + other[1] for one, other in ends]))
    return _estimate(logs, half, bound)


def _estimate(logs: np.typing.NDArray[np.float64], half: float, bound: Bound) -> Estimate:
    middle = float(logs.mean())
    value = math.exp(middle)
    spread = None if bound else over_seeds(logs)
    if spread is None:
        return Estimate(value, None, None, bound)
    low, high = math.exp(middle - half), math.exp(middle + half)
    return Estimate(value, min(spread.low, low), max(spread.high, high))


def _bound(brackets: Sequence[Json]) -> Bound | None:
    """How the searches ended; None if they met both ends, or if none of them sustained anything."""
    low = any(one["best"] is None for one in brackets)
    high = any(one["best"] is not None and one["failed"] is None for one in brackets)
    if (low and high) or all(one["best"] is None for one in brackets):
        return None
    return "below" if low else "at least" if high else ""


def _ends(bracket: Json) -> tuple[float, float]:
    """Logarithm of a bracket's middle, and how far its ends are from that. Neighbouring whole numbers
    leave nothing between them: the lower one is the capacity.
    """
    low, high = bracket["best"], bracket["failed"]
    if low is None:
        return math.log(bracket["least"]), 0.0
    if high is None or (isinstance(low, int) and high == low + 1):
        return math.log(low), 0.0
    return math.log(low * high) / 2, math.log(high / low) / 2


def _row(
    found: Json, scenario: Json, system: str, searches: Mapping[str, Sequence[Json]], base: str
) -> SustainedRow:
    mine = searches[system]
    closed = found["loop"] == "closed"
    sustained = estimate(mine)
    agents = _mean([one["agents"] for one in mine])
    per_s = _mean([one["sessions_per_s"] for one in mine])
    if sustained is not None:
        agents, per_s = (sustained.value, per_s) if closed else (agents, sustained.value)
    return SustainedRow(
        **{name: scenario[name] for name in ("workload", "profile", "engine", "tool_cores")},
        host_kv_gib=scenario["host_kv_gib"],
        num_gpus=scenario["num_gpus"],
        system=system,
        sustained=sustained,
        load=None if closed or sustained is None else sustained.value / scenario["unit_per_s"],
        sessions_per_hour=None if sustained is None or per_s is None else per_s * 3600,
        agents=None if sustained is None else agents,
        ratio=None if system == base else ratio(mine, searches[base]),
        baseline=base,
        seeds=tuple(one["seed"] for one in mine),
        evaluations=sum(len(one["tried"]) for one in mine),
        limit=_limit(mine),
        notes=tuple(_notes(mine, closed=closed)),
    )


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _limit(searches: Sequence[Json]) -> str:
    reasons: Counter[str] = Counter()
    for one in searches:
        at = one["failed"] if one["best"] is not None else one["least"]
        tried = next((t for t in one["tried"] if t["value"] == at), None)
        if tried is not None:
            reasons["unstable" if tried["unstable"] else tried["failed"]] += 1
    return reasons.most_common(1)[0][0] if reasons else ""


def _notes(searches: Sequence[Json], *, closed: bool) -> list[str]:
    notes = []
    scale, unit = (1.0, "agents") if closed else (3600.0, "/h")
    many = len(searches)
    ends = [one for one in searches if one["best"] is not None and one["failed"] is None]
    if ends:
        top = number(max(one["best"] for one in ends) * scale)
        notes.append(
            f"met the top of the bracket, {top} {unit}, in {len(ends)} of {many} seeds: raise --most"
        )
    low = [one for one in searches if one["best"] is None]
    if low:
        least = number(min(one["least"] for one in low) * scale)
        notes.append(
            f"fails even at {least} {unit}, the least tried, in {len(low)} of {many} seeds"
        )
    again = [one for one in searches if one["islands"]]
    if again:
        most = number(max(one["islands"][-1] for one in again) * scale)
        notes.append(
            f"not monotone: passes again up to {most} {unit} above a failure in {len(again)} of {many} "
            "seeds, not counted"
        )
    few = [
        one for one in searches
        if not closed and one["agents"] is not None and one["sessions"] < FEW * one["agents"]
    ]  # fmt: skip
    if few:
        notes.append(
            f"a cell has {few[0]['sessions']} sessions and {max(one['agents'] for one in few):.0f} in the "
            "system at once: give more --sessions"
        )
    return notes


def warnings_of(found: Json) -> list[str]:
    """What a reader must know before quoting the search."""
    notes = []
    seeds = min(
        (len({s["seed"] for s in scenario["searches"]}) for scenario in found["scenarios"]),
        default=0,
    )
    if seeds < MIN_SEEDS:
        notes.append(
            f"fewer than {MIN_SEEDS} seeds: no intervals; run with --seeds {MIN_SEEDS} or more"
        )
    if not found["complete"]:
        notes.append("not all searches are finished")
    notes += [
        f"{scenario['workload']}: seeds draw {scenario['drawn']} sessions from {scenario['distinct']} "
        "distinct ones: the intervals cover which were drawn and when they came, not other recordings"
        for scenario in found["scenarios"]
        if scenario["distinct"] < scenario["drawn"]
    ]
    return list(dict.fromkeys(notes))


def sentence(row: SustainedRow, found: Json) -> str:
    """A row in words."""
    closed = found["loop"] == "closed"
    if row.sustained is None:
        return f"{row.system} sustains no load that was tried in every seed with {found['slo']}"
    scale = 1.0 if closed else 3600.0
    unit = "agents" if closed else "sessions/hour"
    interval = row.sustained.interval(scale)
    inside = f" ({interval})" if interval != "-" else ""
    text = f"{row.system} sustains {row.sustained.text(scale)} {unit}{inside} with {found['slo']}"
    if row.ratio is None:
        return text
    interval = row.ratio.interval()
    inside = f" ({interval})" if interval != "-" else ""
    if (
        row.ratio.low is not None
        and row.ratio.high is not None
        and row.ratio.low <= 1 <= row.ratio.high
    ):
        inside += ", no difference shown"
    return f"{text}: {row.ratio.bound} {row.ratio.value:.2f}x of {row.baseline}{inside}".replace(
        ":  ", ": "
    )


HEADER = ("system", "sessions/hour", "95 %", "load", "agents/GPU", "against", "ratio", "95 %", "seeds",
          "evaluations", "limit")  # fmt: skip
CLOSED_HEADER = ("system", "agents", "95 %", "agents/GPU", "sessions/hour", "against", "ratio", "95 %",
                 "seeds", "evaluations", "limit")  # fmt: skip


def capacity_table(
    rows: Sequence[SustainedRow], *, closed: bool
) -> tuple[list[str], list[list[str]]]:
    """Heading and rows as text."""
    table = []
    for row in rows:
        sustained, scale = row.sustained, 1.0 if closed else 3600.0
        value = "none" if sustained is None else sustained.text(scale)
        interval = "-" if sustained is None else sustained.interval(scale)
        per_gpu = "-" if row.agents is None else number(row.agents / row.num_gpus)
        hour = "-" if row.sessions_per_hour is None else number(row.sessions_per_hour)
        load = "-" if row.load is None else f"{row.load:.2f}"
        against = [
            row.baseline if row.system != row.baseline else "",
            "" if row.ratio is None else f"{row.ratio.bound} {row.ratio.value:.2f}x".strip(),
            "" if row.ratio is None else row.ratio.interval(),
        ]
        seeds = _ranges(row.seeds)
        front = [value, interval, per_gpu, hour] if closed else [value, interval, load, per_gpu]
        table.append([row.system, *front, *against, seeds, str(row.evaluations), row.limit])
    return list(CLOSED_HEADER if closed else HEADER), table


def _ranges(seeds: Sequence[int]) -> str:
    """Seeds as ``0-4`` where they follow each other."""
    if len(seeds) > 2 and list(seeds) == list(range(seeds[0], seeds[-1] + 1)):
        return f"{seeds[0]}-{seeds[-1]}"
    return ",".join(map(str, seeds))
