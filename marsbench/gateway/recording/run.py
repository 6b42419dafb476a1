"""Writes served traffic as a run folder, so that ``marsbench report`` shows it like any other run.

Sessions come and go for as long as a gateway lives, so the folder grows by *parts*: a part holds the
sessions that ended in about an hour, whole, and is a cell of the run whose ``seed`` is the number of
the part. The oldest parts go when the folder is full. What is kept in memory is bounded, too: events
of sessions that have not ended, and of the part that is being filled.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from marsbench.attribution import Ints
from marsbench.core import to_ps, to_s
from marsbench.environment import environment
from marsbench.errors import ConfigError, ResultsError
from marsbench.events import FIELDS, Kind, Status
from marsbench.gateway.messages.classify import FINAL_CALLS
from marsbench.gateway.settings import GatewaySettings
from marsbench.metrics import CellFacts, summarise
from marsbench.records import ROW, EventLog
from marsbench.runfolder import RunFolder
from marsbench.tables import CellKey, build_tables
from marsbench.timeline import PAYLOAD, SESSION, TIME, TURN

logger = logging.getLogger(__name__)

PART_S = 3600.0
PART_EVENTS = 200_000
"""A part is written after so much time or so many events, whichever comes first."""
MAX_OPEN_EVENTS = 2_000_000
"""Events kept in memory (88 bytes each); beyond it, new sessions are not recorded."""
SAMPLE_S = 5.0
"""Between two samples of memory and tools."""
KIND = 1
UNKNOWN = -1
OUTPUT_TOKENS = PAYLOAD + FIELDS[Kind.GPU_END].index("output_tokens")
NUM_TOOLS = PAYLOAD + FIELDS[Kind.GPU_END].index("num_tools")
PARENT = PAYLOAD + FIELDS[Kind.SESSION_ARRIVE].index("parent")
STATUS = PAYLOAD + FIELDS[Kind.SESSION_END].index("status")
NAME = PAYLOAD + FIELDS[Kind.TOOL_ENQUEUED].index("name")


@dataclass(frozen=True, slots=True)
class GatewayLoad:
    """How busy backends and tools are at one moment."""

    free_blocks: int
    num_blocks: int
    turns_running: int
    tools_running: int
    tools_queued: int
    preemptions: int
    """Since the backends started; ``UNKNOWN`` if none of them says."""


@dataclass(slots=True)
class RunPart:
    """What is written together: sessions that have ended, and samples of the time they did."""

    number: int
    began_ps: int
    sessions: list[tuple[str, Ints]] = field(default_factory=list)
    """(id, rows) in order of their ends."""
    samples: list[list[int]] = field(default_factory=list)
    strings: list[str] = field(default_factory=list)
    num_events: int = 0
    ended_ps: int = 0
    busy_ps: int = 0
    """Time in which a backend had turns to run."""
    core_ps: int = 0
    """Time in tool calls, a core each, as far as there are cores."""
    preemptions: tuple[int, int] = (UNKNOWN, UNKNOWN)
    """Of the backends, when the part began and now."""
    num_blocks: int = 0
    dropped: int = 0
    """Sessions that were not recorded because too much was kept already."""


class RunRecorder:
    """Follows the event log of a gateway and writes its sessions in parts."""

    def __init__(
        self,
        path: Path,
        key: CellKey,
        *,
        settings: dict[str, Any],
        max_bytes: int,
        part_s: float = PART_S,
        max_open_events: int = MAX_OPEN_EVENTS,
    ) -> None:
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise ConfigError(f"--out {path}: exists and is not empty; choose another folder")
        self.path = path
        self.num_sessions = 0
        """Sessions written, sub-agents included."""
        self.num_parts = 0
        self.dropped = 0
        """Sessions that were not recorded, because memory was short or a part could not be written."""
        self.rotated = 0
        """Parts that were deleted to make room."""
        self.key = key
        self._part_s, self._max_bytes, self._max_open = part_s, max_bytes, max_open_events
        began = datetime.now(UTC)
        self._began = began
        self._folder = RunFolder(path, f"{began:%Y%m%d-%H%M%S}-serve")
        self._folder.write_json(
            "environment.json",
            environment(
                seeds=(),
                input_sha256={},
                extra={"run_id": self._folder.run_id, "gateway": settings},
            ),
        )
        self._part = RunPart(0, 0)
        self._root: dict[int, int] = {}
        """Session -> its top-level session, of those that are recorded and have not been written."""
        self._ids: dict[int, str] = {}
        self._rows: dict[int, list[Ints]] = {}
        """Rows of sessions that have not been written, by session."""
        self._trees: dict[int, list[int]] = {}
        """Top-level session -> it and its sub-agents."""
        self._alive: dict[int, set[int]] = {}
        """Top-level session -> those of them that have not ended."""
        self._num_open = 0
        self._sampled_ps = self._loaded_ps = 0

    # --- what happens ----------------------------------------------------------------------------

    def take(self, rows: Ints, log: EventLog) -> None:
        """Take in the rows that are new in the gateway's log."""
        self._part.strings = log.strings
        rows = rows[rows[:, SESSION] >= 0]
        for at in np.flatnonzero(rows[:, KIND] == Kind.SESSION_ARRIVE):
            self._arrive(int(rows[at, SESSION]), int(rows[at, PARENT]), log)
        order = np.argsort(rows[:, SESSION], kind="stable")
        rows = rows[order]
        bounds = np.flatnonzero(np.diff(rows[:, SESSION])) + 1
        for group in np.split(rows, bounds) if len(rows) else ():
            session = int(group[0, SESSION])
            if session in self._root:
                self._rows[session].append(group)
                self._num_open += len(group)
                if (group[:, KIND] == Kind.SESSION_END).any():
                    self._end(session)

    def load(self, now_ps: int, load: GatewayLoad, tool_cores: int) -> None:
        """Note how busy backends and tools are now: always counted, and now and then written."""
        part, span_ps = self._part, now_ps - self._loaded_ps
        self._loaded_ps = now_ps
        running = min(load.tools_running, tool_cores) if tool_cores else load.tools_running
        part.core_ps += running * span_ps
        part.busy_ps += span_ps * (load.turns_running > 0)
        began = part.preemptions[0]
        part.preemptions = (load.preemptions if began < 0 else began), load.preemptions
        part.num_blocks = load.num_blocks
        if now_ps - self._sampled_ps < to_ps(SAMPLE_S):
            return
        self._sampled_ps = now_ps
        held = load.num_blocks - load.free_blocks
        kv = [load.free_blocks, held, 0, UNKNOWN, 1000 * held, UNKNOWN]
        cpu = [load.tools_running, load.tools_queued, part.core_ps, part.busy_ps, 0, 0]
        for kind, payload in ((Kind.KV_STATS, kv), (Kind.CPU_STATS, cpu)):
            part.samples.append([now_ps, int(kind), -1, -1, -1, *payload])

    def due(self, now_ps: int) -> RunPart | None:
        """Return the part that is to be written now, and begin another one; None if none is due."""
        part = self._part
        full = part.num_events >= PART_EVENTS
        if not part.sessions or not (full or now_ps - part.began_ps >= to_ps(self._part_s)):
            return None
        return self._cut(now_ps)

    def last(self, now_ps: int) -> RunPart:
        """Return the last part, with what has not ended: a session whose last reply asked for
        nothing more is over, any other is unfinished.
        """
        for root in list(self._alive):
            self._close(root)
        return self._cut(now_ps)

    # --- writing (blocks: called from a thread) ----------------------------------------------------

    def write(self, part: RunPart) -> None:
        """Write a part onto the disk. A part that cannot be written is lost, and the gateway goes
        on.
        """
        if not part.sessions:
            return
        try:
            self._write(part)
        except ResultsError as error:
            self.dropped += len(part.sessions)
            logger.warning("%s: %d sessions are lost: %s", self.path, len(part.sessions), error)

    def finish(self) -> None:
        """Merge the parts, since the run is over."""
        self._folder.finish()

    def _write(self, part: RunPart) -> None:
        log = log_of(part, self.key.tool_cores)
        tables = build_tables(log)
        span_s = to_s(part.ended_ps - part.began_ps)
        entry = summarise(replace(self.key, seed=part.number), tables, CellFacts(wall_s=span_s))
        began = self._began.timestamp() + to_s(part.began_ps)
        entry["served"] = {
            "began": datetime.fromtimestamp(began, UTC).isoformat(timespec="seconds"),
            "dropped_sessions": part.dropped,
        }
        self._folder.write_cell(part.number, entry, log, tables)
        self.num_parts += 1
        self.num_sessions += len(part.sessions)
        self._rotate()

    def _rotate(self) -> None:
        """Delete the oldest parts while the folder is too large; the newest one always stays."""
        parts = sorted((self.path / "cells").iterdir())
        sizes = [sum(file.stat().st_size for file in part.iterdir()) for part in parts]
        while len(parts) > 1 and sum(sizes) > self._max_bytes:
            shutil.rmtree(parts.pop(0))
            sizes.pop(0)
            self.rotated += 1

    # --- sessions ------------------------------------------------------------------------------

    def _arrive(self, session: int, parent: int, log: EventLog) -> None:
        if self._num_open > self._max_open:
            self.dropped += 1
            self._part.dropped += 1
            return
        root = self._root.get(parent, session)
        self._root[session] = root
        self._rows[session] = []
        self._ids[session] = log.session_ids[session]
        self._trees.setdefault(root, []).append(session)
        self._alive.setdefault(root, set()).add(session)

    def _end(self, session: int) -> None:
        root = self._root[session]
        alive = self._alive[root]
        alive.discard(session)
        if not alive:
            self._close(root)

    def _close(self, root: int) -> None:
        """Move a session and its sub-agents into the part that is being filled."""
        del self._alive[root]
        for session in self._trees.pop(root):
            del self._root[session]
            rows = np.concatenate(self._rows.pop(session))
            self._num_open -= len(rows)
            self._part.num_events += len(rows)
            self._part.sessions.append((self._ids.pop(session), rows))

    def _cut(self, now_ps: int) -> RunPart:
        part = self._part
        part.ended_ps = now_ps
        self._part = RunPart(part.number + 1, now_ps, strings=part.strings)
        return part


def log_of(part: RunPart, tool_cores: int) -> EventLog:
    """Return a part as the event log of a cell: sessions numbered from 0 in order of arrival, times
    from the first arrival, and RUN_END.
    """
    log = EventLog()
    for text in part.strings:
        log.intern(text)
    rows = [over(rows, log.strings) for _, rows in part.sessions]
    order = sorted(range(len(rows)), key=lambda at: tuple(rows[at][0, [TIME, SESSION]]))
    numbers = {int(rows[at][0, SESSION]): number for number, at in enumerate(order)}
    log.session_ids = _distinct([part.sessions[at][0] for at in order])
    samples = np.array(part.samples, dtype=np.int64).reshape(-1, ROW)
    found = np.concatenate([*(rows[at] for at in order), samples])
    known = found[:, SESSION] >= 0
    found[known, SESSION] = [numbers[index] for index in found[known, SESSION].tolist()]
    arrived = found[:, KIND] == Kind.SESSION_ARRIVE
    found[arrived, PARENT] = [numbers.get(index, -1) for index in found[arrived, PARENT].tolist()]
    start_ps = int(found[known, TIME].min())
    found[:, TIME] = np.maximum(found[:, TIME] - start_ps, 0)
    found = found[np.argsort(found[:, TIME], kind="stable")]
    log.rows.frombytes(found.tobytes())
    before, now = part.preemptions
    log.append(
        max(int(found[-1, TIME]), part.ended_ps - start_ps),
        int(Kind.RUN_END),
        -1,
        -1,
        -1,
        UNKNOWN,
        UNKNOWN,
        now - before if before >= 0 else UNKNOWN,
        part.busy_ps,
        part.num_blocks,
        tool_cores,
    )
    return log


def over(rows: Ints, strings: Sequence[str]) -> Ints:
    """Return the rows of a session up to its end, which is its last token: a gateway hears of it
    later, from its client or from a long silence.

    Without a SESSION_END it is given one if its last turn was answered and asked for nothing more.
    """
    answers = rows[rows[:, KIND] == Kind.GPU_END]
    ends = rows[rows[:, KIND] == Kind.SESSION_END]
    if not len(answers):
        return rows
    last = answers[-1]
    if not len(ends):
        later = rows[rows[:, TURN] > last[TURN]]
        calls = rows[(rows[:, KIND] == Kind.TOOL_ENQUEUED) & (rows[:, TURN] == last[TURN])]
        final = all(strings[code] in FINAL_CALLS for code in calls[:, NAME].tolist())
        if len(later) or not last[OUTPUT_TOKENS] or (last[NUM_TOOLS] and not final):
            return rows
        ends = np.zeros((1, ROW), dtype=np.int64)
        ends[0, :PAYLOAD] = last[TIME], Kind.SESSION_END, last[SESSION], -1, -1
        ends[0, STATUS] = Status.OK
    end = ends[-1].copy()
    end[TIME] = last[TIME]
    before = rows[(rows[:, TIME] <= last[TIME]) & (rows[:, KIND] != Kind.SESSION_END)]
    return np.concatenate([before, end[None]])


def _distinct(ids: Sequence[str]) -> list[str]:
    """The ids, those that come again (a session that went on after a long silence) numbered."""
    seen: dict[str, int] = {}
    found = []
    for text in ids:
        seen[text] = seen.get(text, 0) + 1
        found.append(text if seen[text] == 1 else f"{text}~{seen[text]}")
    return found


def run_recorder(settings: GatewaySettings, path: Path) -> RunRecorder:
    """Open the run folder of a gateway, with what it was asked to do, secrets left out."""
    key = CellKey(
        workload="served",
        system=settings.system,
        engine="vllm" if settings.engine == "auto" else settings.engine,
        profile=settings.profile,
        load=None,
        rate_per_s=None,
        seed=0,
        tool_cores=settings.tool_cores,
    )
    told = {
        "backends": list(settings.backends),
        "system": settings.system,
        "profile": settings.profile,
        "params": dict(settings.params),
        "tool_cores": settings.tool_cores,
    }
    return RunRecorder(path, key, settings=told, max_bytes=settings.out_bytes)
