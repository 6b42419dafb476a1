"""The grid of an experiment: one cell per workload, profile, tool cores, load, seed and system."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from marsbench.config import ExperimentConfig


@dataclass(frozen=True, slots=True)
class Point:
    """What cells that differ only in their system share: sessions and arrivals are the same."""

    workload: str
    """The workload as it was given: a registered name or a path."""
    profile: str
    tool_cores: int
    load: float | None
    """Share of capacity; None if the rate is given instead, or there is none."""
    rate_per_s: float | None
    """Sessions per second, as given; None if the load is given instead, or there is none."""
    seed: int
    host_kv_gib: float = 0.0
    """Host memory for KV per GPU."""
    replicas: int = 1
    """Engines behind one front door."""

    def describe(self) -> str:
        """Return a short text that names the point in progress and error lines."""
        rate = "own pace"
        if self.load is not None:
            rate = f"load {self.load:g}"
        elif self.rate_per_s is not None:
            rate = f"{self.rate_per_s:g}/s"
        name = Path(self.workload).name
        host = f" {self.host_kv_gib:g} GiB host" if self.host_kv_gib else ""
        many = f" {self.replicas} replicas" if self.replicas > 1 else ""
        return f"{name} {self.profile} {rate} {self.tool_cores} cores{host}{many} seed {self.seed}"


@dataclass(frozen=True, slots=True)
class Cell:
    """One run of the grid: a point of it, and the system that plays there."""

    index: int
    point: Point
    system: str

    def describe(self) -> str:
        """Return a short text that names the cell in progress and error lines."""
        return f"{self.system} {self.point.describe()}"


def points(config: ExperimentConfig) -> Iterator[Point]:
    """Yield grid points in order: workload, profile, tool cores, host memory, replicas, load, rate,
    seed.
    """
    pressures: list[tuple[float | None, float | None]] = [(load, None) for load in config.load]
    pressures += [(None, rate) for rate in config.rate_per_s]
    seeds = range(config.first_seed, config.first_seed + config.seeds)
    for workload, profile, cores, host_kv_gib, replicas, (load, rate), seed in itertools.product(
        config.workload,
        config.profile,
        config.tool_cores,
        config.host_kv_gib,
        config.replicas,
        pressures or [(None, None)],
        seeds,
    ):
        yield Point(workload, profile, cores, load, rate, seed, host_kv_gib, replicas)


def grid(config: ExperimentConfig) -> list[Cell]:
    """Return all cells; those of one point stand together, in the order the systems were named."""
    pairs = [(point, system) for point in points(config) for system in config.system]
    return [Cell(index, point, system) for index, (point, system) in enumerate(pairs)]
