"""Tool calls of an agent: a slot of the gateway for each, and what each of them used.

The rule is fail-closed: without a slot a tool does not run, and an agent that cannot get one ends.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from marsbench.agents.runner import processes, room
from marsbench.agents.runner.meter import Meter
from marsbench.agents.runner.protocol import WorkOrder

LEASE_S = 240.0


class Refused(Exception):  # noqa: N818 - a decision, not a defect
    """The agent may not go on: no slot, or its task has been ended for a reason."""


@dataclass
class ToolRecord:
    """One tool call as it ran."""

    turn: int
    call_id: str
    name: str
    arguments: str
    """JSON."""
    asked_ns: int = 0
    start_ns: int = 0
    end_ns: int = 0
    cpu_s: float = 0.0
    """Of its processes, and of the agent's thread for tools that run inside it."""
    cores: float = 1.0
    """How many processors it could have used: threads that could run, while any could."""
    io_s: float = 0.0
    """Time in which it waited for anything but a processor."""
    late_s: float = 0.0
    """From the end of its last process to the moment the agent saw it: what polling costs."""
    own_cpu_s: float = 0.0
    """CPU time of the agent itself between its last call and this one."""
    own_delay_s: float = 0.0
    """Time for which its threads waited for a processor meanwhile."""
    peak_bytes: int = 0
    """Most memory of its processes together, the shell included."""
    nice: int = 0
    error: bool = False
    timed_out: bool = False


class Slots:
    """The gateway's tool slots, for one session."""

    def __init__(self, base_url: str, session: str, api_key: str) -> None:
        parts = urlsplit(base_url)
        self._host, self._port = parts.hostname or "", parts.port
        self._session = session
        self._headers = {
            "authorization": f"Bearer {api_key}",
            "content-type": "application/json",
        }

    def acquire(self, name: str) -> dict[str, Any]:
        """Wait for a slot; Refused if there is none to be had."""
        return self._post(
            "acquire", {"session_id": self._session, "name": name, "lease_s": LEASE_S}
        )

    def renew(self, lease: str) -> None:
        """Ask for more time."""
        self._post("renew", {"lease": lease, "lease_s": LEASE_S})

    def release(self, lease: str, *, error: bool, cpu_s: float) -> None:
        """Give it back; one that is over already (its session has ended) is fine."""
        with contextlib.suppress(Refused):
            self._post("release", {"lease": lease, "error": error, "cpu_s": cpu_s})

    def _post(self, what: str, body: Mapping[str, Any]) -> dict[str, Any]:
        connection = http.client.HTTPConnection(self._host, self._port)
        try:
            connection.request("POST", f"/v1/tools/{what}", json.dumps(body), self._headers)
            answer = connection.getresponse()
            found = json.loads(answer.read())
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise Refused(f"tool slots do not answer: {error}") from error
        finally:
            connection.close()
        if answer.status != 200:
            message = found.get("error", {}).get("message", "")
            raise Refused(f"no tool slot: {answer.status} {message}")
        return dict(found)


class ToolRunner:
    """Puts a slot and a meter around each tool call of an agent."""

    def __init__(
        self, order: WorkOrder, tell: Callable[[dict[str, Any]], None], seen: Path
    ) -> None:
        self.refused = ""
        """Why the agent must stop, once it must."""
        self._order = order
        self._tell = tell
        self._seen = seen
        self._slots = Slots(order.base_url, order.session, order.api_key)
        self._own_before = processes.own_times_s()

    @contextmanager
    def call(
        self, turn: int, call_id: str, name: str, arguments: str, *, inside: bool = False
    ) -> Iterator[ToolRecord]:
        """Around a tool call. Raises Refused, before the tool runs, if it must not.

        ``inside``: the tool works in the calling thread and not in processes of its own.
        """
        if self.refused:
            raise Refused(self.refused)
        record = ToolRecord(turn, call_id, name, arguments, asked_ns=time.monotonic_ns())
        record.own_cpu_s, record.own_delay_s = (
            max(0.0, now - before)
            for now, before in zip(processes.own_times_s(), self._own_before, strict=True)
        )
        try:
            lease = self._slots.acquire(name)
        except Refused as error:
            self.refused = str(error)
            raise
        record.start_ns = time.monotonic_ns()
        meter = Meter(record, lease, self._order, self._renew, inside=inside)
        meter.start()
        try:
            yield record
        except BaseException:
            record.error = True
            raise
        finally:
            record.end_ns = time.monotonic_ns()
            meter.stop()
            self._own_before = processes.own_times_s()
            self._slots.release(
                lease["lease"], error=record.error or record.timed_out, cpu_s=record.cpu_s
            )
            self._tell({"said": "tool", **record.__dict__})
            if room.full(self._seen, self._order.limit_mib):
                self.refused = f"the workspace is full ({self._order.limit_mib} MiB)"

    def _renew(self, lease: str) -> None:
        with contextlib.suppress(Refused):  # what it cannot renew, its release will tell
            self._slots.renew(lease)
