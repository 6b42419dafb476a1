"""Results are those of sorting and joining in memory."""

import random
import statistics
from itertools import product

import pytest
from bulksort import Summary, merge_join, sort_external
from bulksort.external import make_runs, read_run, write_run

BULK = 250_000
"""Pairs held in memory at once by the largest test."""


@pytest.fixture(scope="module")
def bulk():
    draw = random.Random(17)
    return [(draw.randrange(1 << 40), index) for index in range(BULK)]


def test_round_trip(tmp_path):
    pairs = [(-1, 2), (3, -4), (1 << 60, 0)]
    assert write_run(tmp_path / "a", pairs) == 3
    assert list(read_run(tmp_path / "a")) == pairs


def test_runs(tmp_path):
    paths = make_runs([(9 - i, i) for i in range(10)], tmp_path, 4)
    assert [len(list(read_run(path))) for path in paths] == [4, 4, 2]
    assert list(read_run(paths[0])) == [(6, 3), (7, 2), (8, 1), (9, 0)]


@pytest.mark.parametrize(("num", "run", "fan"), [(0, 5, 2), (5, 5, 2), (1000, 7, 3), (999, 50, 8)])
def test_small(tmp_path, num, run, fan):
    draw = random.Random(num)
    pairs = [(draw.randrange(50), index) for index in range(num)]
    found = list(sort_external(pairs, tmp_path, run_pairs=run, fan_in=fan))
    assert found == sorted(pairs, key=lambda pair: pair[0])
    assert not list(tmp_path.iterdir())


def test_bulk(tmp_path, bulk):
    found = list(sort_external(bulk, tmp_path, run_pairs=30_000, fan_in=4))
    assert found == sorted(bulk)


def test_wide_rows(tmp_path):
    draw = random.Random(6)
    rows = [(draw.randrange(1 << 30), draw.randbytes(16) * 256) for _ in range(50_000)]
    order = sort_external(((key, index) for index, (key, _) in enumerate(rows)), tmp_path)
    wide = [rows[index] for _, index in order]
    assert wide == sorted(rows, key=lambda row: row[0])
    assert sum(len(blob) for _, blob in wide) == 50_000 * 4096


def test_join():
    draw = random.Random(4)
    left = sorted((draw.randrange(30), index) for index in range(100))
    right = sorted((draw.randrange(30), -index) for index in range(80))
    slow = [(a[0], a[1], b[1]) for a, b in product(left, right) if a[0] == b[0]]
    assert sorted(merge_join(left, right)) == sorted(slow)
    assert list(merge_join(left, [])) == []


def test_bulk_join(bulk):
    table = sorted((key % 5000, value) for key, value in bulk[:120_000])
    keys = [(key, key * 2) for key in range(0, 5000, 3)]
    joined = list(merge_join(table, keys))
    assert len(joined) == sum(1 for key, _ in table if key % 3 == 0)
    assert all(partner == 2 * key for key, _, partner in joined)


def test_summary(bulk):
    values = [key / 7 for key, _ in bulk[:80_000]]
    whole = Summary()
    whole.extend(values)
    assert whole.count == len(values)
    assert whole.mean == pytest.approx(statistics.fmean(values))
    assert whole.deviation == pytest.approx(statistics.stdev(values))
    assert (whole.low, whole.high) == (min(values), max(values))


def test_summary_of_parts():
    values = [float(value * value % 101) for value in range(1000)]
    one, other, whole = Summary(), Summary(), Summary()
    one.extend(values[:123])
    other.extend(values[123:])
    whole.extend(values)
    both = one.joined(other)
    assert both.mean == pytest.approx(whole.mean)
    assert both.deviation == pytest.approx(whole.deviation)
    assert both.count == 1000
    assert Summary().joined(Summary()) == Summary()
