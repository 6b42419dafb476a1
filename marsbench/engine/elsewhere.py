"""Runs whole cells in a child process of another interpreter, which has the engine's package.

The plan goes in, pickled, and the rows of the event log come back as they are made: policies, tools
and sessions run beside the engine core there, so nothing crosses the pipe in between. The child ends
when its parent does, because its standard input does.
"""

from __future__ import annotations

import os
import pickle
import struct
import subprocess
import sys
import tempfile
import traceback
from array import array
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, Self

import marsbench
from marsbench.engine.base import CoreStats, EngineConfig
from marsbench.engine.plan import CellOutcome, CellPlan, Json, Progress
from marsbench.errors import EngineError, MarsbenchError
from marsbench.records import EventLog

LENGTH = struct.Struct("<q")
MOST_BYTES = 1 << 16
"""Rows travel in messages of about so many bytes."""
LOG_LINES = 8
"""Last lines of the child's own output in an error."""


class Elsewhere:
    """An ``engine.plan.Engine`` in another interpreter. Another process can take it along: it then
    starts a child of its own.
    """

    def __init__(self, core: str, python: str, *, one_configuration: bool = False) -> None:
        """``core`` is the dotted path of an engine core that ``python`` can import.
        ``one_configuration``: a child serves one set of engine flags, then another is started.
        """
        self._core = core
        self._python = python
        self._one_configuration = one_configuration
        self._child: subprocess.Popen[bytes] | None = None
        self._said: IO[bytes] | None = None
        self._flags: EngineConfig | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._stop()

    def __reduce__(self) -> tuple[Any, ...]:
        return _remade, (self._core, self._python, self._one_configuration)

    def __del__(self) -> None:
        self._stop()

    def run(self, plan: CellPlan, log: EventLog, progress: Progress | None = None) -> CellOutcome:
        """See ``Engine.run``."""
        if self._child is not None and self._one_configuration and plan.flags != self._flags:
            self._stop()
        child = self._child or self._start()
        self._flags = plan.flags
        assert child.stdin is not None
        assert child.stdout is not None
        try:
            send(child.stdin, ("plan", plan))
            while True:
                kind, content = receive(child.stdout)
                if kind == "rows":
                    data, ids, names = content
                    log.session_ids = ids or log.session_ids
                    for name in names:
                        log.intern(name)
                    log.rows.frombytes(data)
                elif kind == "progress" and progress is not None:
                    progress(*content)
                elif kind == "error":
                    raise content  # noqa: TRY301 - it is the child's; the pipe is handled below
                elif kind == "done":
                    return CellOutcome(CoreStats(**content))
        except (EOFError, OSError) as error:
            raise EngineError(f"{self._core} in {self._python} ended{self._tail()}") from error
        except BaseException:
            self._stop()  # whatever it was doing, nobody waits for it any more
            raise

    def described(self) -> Mapping[str, Json]:
        """Return which interpreter runs the engine."""
        return {"python": self._python}

    def _start(self) -> subprocess.Popen[bytes]:
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the child
        self._child = subprocess.Popen(  # noqa: S603 - the interpreter is the user's choice
            [self._python, "-m", "marsbench.engine.elsewhere", self._core],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            env={**os.environ, "PYTHONPATH": import_path()},
            start_new_session=True,  # Ctrl-C reaches us only; we then stop it
        )
        return self._child

    def _stop(self) -> None:
        child, self._child = self._child, None
        if child is None:
            return
        child.kill()
        child.wait()
        for pipe in (child.stdin, child.stdout, self._said):
            if pipe is not None:
                try:
                    pipe.close()
                except BrokenPipeError:  # what was still to be sent is of no use now
                    continue

    def _tail(self) -> str:
        assert self._said is not None
        self._said.seek(0)
        lines = self._said.read().decode(errors="replace").splitlines()
        said = "\n".join([line for line in lines if line.strip()][-LOG_LINES:])
        return f":\n{said}" if said else " without a word"


def import_path() -> str:
    """Return the PYTHONPATH with which another interpreter finds what this process imports: the
    folder the user is in (policies of their own), and marsbench's unless it is installed.
    """
    source = Path(marsbench.__file__).resolve().parent.parent
    installed = source.name in {"site-packages", "dist-packages"}
    path = [*([] if installed else [str(source)]), str(Path.cwd())]
    path += [entry for entry in (os.environ.get("PYTHONPATH"),) if entry]
    return os.pathsep.join(dict.fromkeys(path))


def send(pipe: IO[bytes], message: tuple[str, Any]) -> None:
    """Write one message to a pipe, with its length before it."""
    data = pickle.dumps(message)
    pipe.write(LENGTH.pack(len(data)) + data)
    pipe.flush()


def receive(pipe: IO[bytes]) -> tuple[str, Any]:
    """Read the next message of a pipe; EOFError at its end. Only our own child or parent is at the
    other end.
    """
    head = pipe.read(LENGTH.size)
    if len(head) < LENGTH.size:
        raise EOFError
    message: tuple[str, Any] = pickle.loads(pipe.read(LENGTH.unpack(head)[0]))  # noqa: S301
    return message


class _SentRows(array):  # type: ignore[type-arg]  # array[int] is no class before Python 3.12
    """Rows of an event log that are sent, with the names they refer to, instead of kept."""

    pipe: IO[bytes]
    log: EventLog
    kept: bytearray
    told: int

    def frombytes(self, data: Any, /) -> None:
        """Take rows; send them when they are many."""
        self.kept += data
        if len(self.kept) > MOST_BYTES:
            self.flush()

    def flush(self) -> None:
        """Send what is kept."""
        ids = [] if self.told else self.log.session_ids
        names = self.log.strings[max(self.told - 1, 0) :]
        send(self.pipe, ("rows", (bytes(self.kept), ids, names)))
        self.kept.clear()
        self.told = len(self.log.strings) + 1


def _remade(core: str, python: str, one_configuration: bool) -> Elsewhere:
    return Elsewhere(core, python, one_configuration=one_configuration)


def _serve(core_path: str) -> None:
    """The child: run one plan after the other until nobody sends any."""
    # NOTE: packages print to standard output, which carries our messages: give them another one.
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    inlet = sys.stdin.buffer
    from dataclasses import asdict

    from marsbench.engine.kind import attribute
    from marsbench.engine.virtual import VirtualEngine

    engine = VirtualEngine(attribute(core_path))
    while True:
        try:
            _, plan = receive(inlet)
        except EOFError:
            return
        log = EventLog()
        rows = _SentRows("q")
        rows.pipe, rows.log, rows.kept, rows.told = out, log, bytearray(), 0
        log.rows = rows

        def tell(done: int, now_ps: int) -> None:
            send(out, ("progress", (done, now_ps)))

        try:
            outcome = engine.run(plan, log, tell)
        except MarsbenchError as error:
            send(out, ("error", error))
            return
        except Exception:  # noqa: BLE001 - it is shown, and then the process ends
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)  # packages say good-bye at length, and the last lines are what a user sees
        rows.flush()
        send(out, ("done", asdict(outcome.stats)))


if __name__ == "__main__":
    _serve(sys.argv[1])
