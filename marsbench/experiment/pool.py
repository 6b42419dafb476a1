"""Simulations spread over processes, with results in the order of the tasks."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar

from marsbench.errors import EngineError

Task = TypeVar("Task")
Result = TypeVar("Result")


class Workers(Protocol):
    """A place where tasks run: this process, others, or a cluster."""

    jobs: int
    """1: in this process, one after the other."""

    def map(self, function: Callable[[Task], Result], tasks: Sequence[Task]) -> list[Result]: ...
    def settle(
        self,
        function: Callable[[Task], Result],
        tasks: Sequence[Task],
        errors: tuple[type[Exception], ...],
    ) -> Iterator[Result | Exception]: ...


def open_workers(jobs: int | str) -> AbstractContextManager[Workers]:
    """Open so many processes of this machine, or Ray: ``ray`` or ``ray://HOST:PORT``.

    Raises ConfigError if Ray is not installed, EngineError if there is none at that address.
    """
    if isinstance(jobs, int):
        return Pool(jobs)
    from marsbench.experiment.ray_pool import RayPool

    return RayPool(jobs)


class Pool:
    """``jobs`` worker processes; with one job everything runs in this process.

    Tasks and results cross process borders, so both are plain data and functions are importable.
    Workers start afresh (spawn): they share no state, and results cannot depend on which worker
    ran what.
    """

    def __init__(self, jobs: int) -> None:
        self.jobs = jobs
        self._executor: ProcessPoolExecutor | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._executor is None:
            return
        if error is not None:  # do not wait for simulations whose results nobody will read
            for worker in multiprocessing.active_children():
                worker.terminate()
        self._executor.shutdown(wait=error is None, cancel_futures=True)

    def map(self, function: Callable[[Task], Result], tasks: Sequence[Task]) -> list[Result]:
        """Return all results, in order of the tasks. The first task that raises ends it."""
        if self.jobs == 1 or len(tasks) < 2:
            return [function(task) for task in tasks]
        return [self._result(future) for future in self._submit(function, tasks)]

    def settle(
        self,
        function: Callable[[Task], Result],
        tasks: Sequence[Task],
        errors: tuple[type[Exception], ...],
    ) -> Iterator[Result | Exception]:
        """Yield results one by one in order of the tasks; a task that raised one of ``errors``
        gives it.
        """
        if self.jobs == 1:
            for task in tasks:
                try:
                    yield function(task)
                except errors as error:
                    yield error
            return
        for future in self._submit(function, tasks):
            try:
                yield self._result(future)
            except errors as error:
                yield error

    def _submit(
        self, function: Callable[[Task], Result], tasks: Sequence[Task]
    ) -> list[Future[Result]]:
        if self._executor is None:
            self._executor = ProcessPoolExecutor(
                self.jobs, mp_context=multiprocessing.get_context("spawn"), initializer=_quiet
            )
        return [self._executor.submit(function, task) for task in tasks]

    @staticmethod
    def _result(future: Future[Any]) -> Any:
        try:
            return future.result()
        except BrokenProcessPool as error:
            raise EngineError(
                "a worker process died (out of memory, or killed); run with fewer --jobs"
            ) from error


def _quiet() -> None:
    """Ctrl-C is the parent's to handle; a worker's traceback would only be noise."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
