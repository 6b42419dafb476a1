"""What a run shows, in sentences, before any number is looked up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from marsbench.report.compare import HEADLINE, compare_systems, default_baseline, warnings_of
from marsbench.report.data import ReportData


@dataclass(frozen=True, slots=True)
class Verdict:
    """Sentences of one scenario."""

    summary: list[str]
    """Who is best where, and who is past the stability point."""
    by_load: list[tuple[str, list[str]]]
    """(load, one sentence a system against the baseline)."""
    warnings: list[str]


def verdict(data: ReportData) -> Verdict:
    """The verdict of a scenario."""
    summary = [*_best(data), *_unstable(data)]
    if len(data.systems) < 2:
        return Verdict(summary, [], [])
    found = compare_systems(data, default_baseline(data.systems))
    headlines = [entry for entry in found if entry.statistic == HEADLINE]
    places = dict.fromkeys(entry.where for entry in headlines)
    by_load = [
        (place, [entry.sentence() for entry in headlines if entry.where == place])
        for place in places
    ]
    return Verdict(summary, by_load, warnings_of(found))


def _best(data: ReportData) -> list[str]:
    """Who has the lowest mean latency, load by load."""
    winners: dict[str, list[str]] = {}
    for load in data.x_values:
        here = data.at(load)
        means = pd.to_numeric(here.cells[HEADLINE]).groupby(here.cells["system"]).mean().dropna()
        if len(means) > 1:
            winners.setdefault(str(means.idxmin()), []).append(data.place(load))
    return [
        f"{system} has the lowest mean session latency at {_listed(places)}."
        for system, places in winners.items()
    ]


def _unstable(data: ReportData) -> list[str]:
    """Past which load each system's queue grows as long as sessions arrive."""
    places: dict[str, list[str]] = {}
    for load in data.x_values:
        shaky = data.unstable(data.at(load).cells)
        for system in [name for name in data.systems if name in shaky]:
            places.setdefault(system, []).append(data.place(load))
    return [
        f"{system} is unstable at {_listed(where)}: its queue grows as long as sessions arrive, so its "
        "latency there is a matter of how long the run was."
        for system, where in places.items()
    ]


def _listed(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
