"""Sorting by runs on disk."""

from __future__ import annotations

import heapq
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path

PAIR = struct.Struct("<qq")
"""Key and value."""
CHUNK = 4096
"""Pairs read at once."""

Pair = tuple[int, int]


def write_run(path: Path, pairs: Iterable[Pair]) -> int:
    """Write pairs; how many."""
    count = 0
    with path.open("wb") as file:
        for pair in pairs:
            file.write(PAIR.pack(*pair))
            count += 1
    return count


def read_run(path: Path) -> Iterator[Pair]:
    """Pairs of a run, a chunk in memory at a time."""
    with path.open("rb") as file:
        while data := file.read(PAIR.size * CHUNK):
            yield from PAIR.iter_unpack(data)


def make_runs(pairs: Iterable[Pair], folder: Path, run_pairs: int) -> list[Path]:
    """Sorted runs of at most ``run_pairs`` pairs."""
    paths: list[Path] = []
    held: list[Pair] = []
    for pair in pairs:
        held.append(pair)
        if len(held) == run_pairs:
            paths.append(_flush(held, folder, len(paths)))
            held = []
    if held:
        paths.append(_flush(held, folder, len(paths)))
    return paths


def sort_external(
    pairs: Iterable[Pair], folder: Path, *, run_pairs: int = 100_000, fan_in: int = 8
) -> Iterator[Pair]:
    """Pairs in order of their keys; those with equal keys stay in the order they came."""
    runs = make_runs(pairs, folder, run_pairs)
    level = 0
    while len(runs) > fan_in:
        merged = []
        for index in range(0, len(runs), fan_in):
            group = runs[index : index + fan_in]
            path = folder / f"level{level}-{index // fan_in}.run"
            write_run(path, _merge(group))
            merged.append(path)
            for done in group:
                done.unlink()
        runs = merged
        level += 1
    yield from _merge(runs)
    for path in runs:
        path.unlink()


def _merge(paths: list[Path]) -> Iterator[Pair]:
    return heapq.merge(*(read_run(path) for path in paths), key=lambda pair: pair[0])


def _flush(held: list[Pair], folder: Path, index: int) -> Path:
    path = folder / f"run{index}.run"
    held.sort(key=lambda pair: pair[0])
    write_run(path, held)
    return path
