"""Simulations spread over Ray: the cores of this machine, or a cluster.

Ray moves the tasks, watches the workers and starts a task again whose worker was lost. A worker shares
no file system with this process: a cell is written to a folder of the worker's own, and its files come
back with the result and are stored here, as they are, when they arrive.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from marsbench.engine.elsewhere import import_path
from marsbench.errors import EngineError
from marsbench.experiment.memo import code_digest
from marsbench.experiment.tasks import CellTask
from marsbench.extras import require
from marsbench.runfolder import RunFolder

Task = TypeVar("Task")
Result = TypeVar("Result")
Files = dict[str, bytes]

RETRIES = 3
"""How often a task is started again whose worker was lost."""


class RayPool:
    """A ``pool.Pool`` on Ray. Results do not depend on which worker ran what."""

    def __init__(self, address: str) -> None:
        """``address``: ``ray`` for a Ray of this machine alone, ``ray://HOST:PORT`` for a cluster."""
        require("ray", f"--jobs {address}")
        import ray

        self.jobs = 2
        """More than one, for whoever asks: nothing runs in this process."""
        self._ray: Any = ray
        self._address = None if address == "ray" else address
        self._given = address

    def __enter__(self) -> Self:
        local = self._address is None
        try:
            self._ray.init(
                address=self._address,
                num_cpus=os.cpu_count() if local else None,
                include_dashboard=False if local else None,
                log_to_driver=False,
                configure_logging=False,
                runtime_env={"env_vars": {"PYTHONPATH": import_path()}} if local else None,
            )
        except Exception as error:  # Ray raises plain ones when its processes do not start
            text = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise EngineError(f"--jobs {self._given}: no Ray there: {text}") from error
        self._same_code()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._ray.shutdown()

    def map(self, function: Callable[[Task], Result], tasks: Sequence[Task]) -> list[Result]:
        """Return all results, in order of the tasks. The first task that raises ends it."""
        found: list[Result] = []
        for result in self.settle(function, tasks, ()):
            assert not isinstance(result, Exception)
            found.append(result)
        return found

    def settle(
        self,
        function: Callable[[Task], Result],
        tasks: Sequence[Task],
        errors: tuple[type[Exception], ...],
    ) -> Iterator[Result | Exception]:
        """Yield results one by one in order of the tasks, each stored when it arrives; a task that
        raised one of ``errors`` gives it.
        """
        remote = self._ray.remote(num_cpus=1, max_retries=RETRIES)(carried)
        references = [remote.remote(function, task) for task in tasks]
        waiting = {reference: number for number, reference in enumerate(references)}
        arrived: dict[int, Result | Exception] = {}
        shown = 0
        try:
            while waiting:
                ready, _ = self._ray.wait(list(waiting), num_returns=1)
                number = waiting.pop(ready[0])
                arrived[number] = self._take(ready[0], tasks[number], errors)
                while shown in arrived:
                    yield arrived.pop(shown)
                    shown += 1
        finally:
            for reference in waiting:
                self._ray.cancel(reference, force=True)

    def _take(self, reference: Any, task: Any, errors: tuple[type[Exception], ...]) -> Any:
        """A result, its files stored; or the error that the task raised."""
        try:
            result, files = self._ray.get(reference)
        except self._ray.exceptions.RayTaskError as error:
            cause = error.cause
            if isinstance(cause, errors):
                return cause
            raise cause from error
        except self._ray.exceptions.RayError as error:
            lost = EngineError(
                f"a worker of Ray was lost {RETRIES + 1} times (out of memory, or killed): "
                f"{str(error).splitlines()[0]}"
            )
            if isinstance(lost, errors):
                return lost
            raise lost from error
        if files:
            try:
                task.folder.take_cell(task.index, files)
            except errors as error:
                return error
        return result

    def _same_code(self) -> None:
        """EngineError if a worker would run other code than this process."""
        here = code_digest("sim", ())
        there = self._ray.get(self._ray.remote(digest_there).remote())
        if here != there:
            raise EngineError(
                f"--jobs {self._given}: the workers have another marsbench than this process; "
                "install the same version on both"
            )


def digest_there() -> str:
    """Return, on a worker, the digest of the code that the worker has."""
    return code_digest("sim", ())


def carried(function: Callable[[Any], Any], task: Any) -> tuple[Any, Files]:
    """Run a task on a worker; a cell's files come along with its result."""
    if not isinstance(task, CellTask):
        return function(task), {}
    with tempfile.TemporaryDirectory(prefix="marsbench-") as place:
        folder = RunFolder(Path(place), task.folder.run_id)
        result = function(replace(task, folder=folder))
        return result, folder.give_cell(task.index)
