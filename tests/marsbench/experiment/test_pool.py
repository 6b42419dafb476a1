"""Tasks over processes: results in order of the tasks, errors where they belong."""

from __future__ import annotations

import ast
import operator

import pytest

from marsbench.errors import ConfigError, PolicyError
from marsbench.experiment.pool import Pool


def _fail_on_two(task: int) -> int:
    if task == 2:
        raise PolicyError("two")
    return task


def test_results_in_order_of_tasks():
    """The order of results is that of the tasks."""
    with Pool(1) as pool:
        assert pool.map(operator.neg, [1, 2, 3]) == [-1, -2, -3]


def test_expected_errors_take_their_place():
    """An expected error stands where the result would; later tasks still run."""
    with Pool(1) as pool:
        first, second, third = pool.settle(_fail_on_two, [1, 2, 3], (PolicyError,))
    assert [first, third] == [1, 3]
    assert isinstance(second, PolicyError)


def test_processes_keep_order_and_errors():
    """From worker processes too: results in order of the tasks, an error as itself, in its place."""
    with Pool(2) as pool:
        assert pool.map(operator.neg, [1, 2, 3]) == [-1, -2, -3]
        first, second = pool.settle(ast.literal_eval, ["1", "("], (SyntaxError,))
    assert first == 1
    assert isinstance(second, SyntaxError)


def test_other_errors_end_it():
    """An error that is not expected is not swallowed."""
    with Pool(1) as pool, pytest.raises(PolicyError):
        list(pool.settle(_fail_on_two, [1, 2], (ConfigError,)))
