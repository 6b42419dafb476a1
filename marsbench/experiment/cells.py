"""The grid of an experiment: one cell per workload, profile, tool cores, load, seed and system."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from marsbench.config import ExperimentConfig


@dataclass(frozen=True, slots=True)
class Point:
    """What cells that differ only in their system share: sessions and arrivals are the same."""

    workload: str
    """As given: a registered name or a path."""
    profile: str
    tool_cores: int
    load: float | None
    """Share of capacity; None if the rate is given instead, or there is none."""
    rate_per_s: float | None
    """Sessions per second, as given; None if the load is given instead, or there is none."""
    seed: int

    def describe(self) -> str:
        """For progress and error lines."""
        rate = "own pace"
        if self.load is not None:
            rate = f"load {self.load:g}"
        elif self.rate_per_s is not None:
            rate = f"{self.rate_per_s:g}/s"
        name = Path(self.workload).name
        return f"{name} {self.profile} {rate} {self.tool_cores} cores seed {self.seed}"


@dataclass(frozen=True, slots=True)
class Cell:
    """One simulation of the grid."""

    index: int
    point: Point
    system: str

    def describe(self) -> str:
        """For progress and error lines."""
        return f"{self.system} {self.point.describe()}"


def points(config: ExperimentConfig) -> Iterator[Point]:
    """Grid points in order: workload, profile, tool cores, load then rate, seed."""
    pressures: list[tuple[float | None, float | None]] = [(load, None) for load in config.load]
    pressures += [(None, rate) for rate in config.rate_per_s]
    for workload in config.workload:
        for profile in config.profile:
            for tool_cores in config.tool_cores:
                for load, rate in pressures or [(None, None)]:
                    for seed in range(config.first_seed, config.first_seed + config.seeds):
                        yield Point(workload, profile, tool_cores, load, rate, seed)


def grid(config: ExperimentConfig) -> list[Cell]:
    """All cells; those of one point stand together, in the order the systems were named."""
    pairs = [(point, system) for point in points(config) for system in config.system]
    return [Cell(index, point, system) for index, (point, system) in enumerate(pairs)]
