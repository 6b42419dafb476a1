"""What one client, and all of them together, may cost the gateway: requests, bytes, connections."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, MutableMapping
from dataclasses import dataclass
from typing import Any, Protocol

from marsbench.gateway.backends.messages import Receive
from marsbench.gateway.problems import ApiProblem
from marsbench.gateway.settings import Limits

Scope = MutableMapping[str, Any]

MAX_CLIENTS = 10_000
DISCARD_S = 5.0
RETRY_S = 1.0


class RateLimit:
    """Limits the requests of each client by a token bucket."""

    def __init__(self, limits: Limits) -> None:
        self._rate = limits.requests_per_s
        self._burst = float(limits.burst)
        self._clients: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def check(self, client: str, now_s: float) -> None:
        """Take one request; ApiProblem (429) if the client has none left."""
        if not self._rate:
            return
        left, at_s = self._clients.pop(client, (self._burst, now_s))
        left = min(self._burst, left + (now_s - at_s) * self._rate)
        if left < 1.0:
            self._clients[client] = left, now_s
            wait_s = math.ceil((1.0 - left) / self._rate)
            raise ApiProblem(
                429, "too many requests", code="rate_limit_exceeded", retry_after_s=wait_s
            )
        self._clients[client] = left - 1.0, now_s
        if len(self._clients) > MAX_CLIENTS:
            self._clients.popitem(last=False)


class Count(Protocol):
    """A number that several processes may share, each with a part of its own."""

    own: int
    """The part of this process."""

    @property
    def total(self) -> int:
        """Of all processes."""
        ...


class OwnCount:
    """The count of a process that is alone."""

    def __init__(self) -> None:
        self.own = 0

    @property
    def total(self) -> int:
        """There are no others."""
        return self.own


class BodyBudget:
    """Bytes of request bodies that may be in memory at once, whoever sent them."""

    def __init__(self, limits: Limits, count: Count | None = None) -> None:
        self._count = count or OwnCount()
        self._most = limits.all_body_bytes

    @property
    def used(self) -> int:
        """Bytes that are in memory, of all processes."""
        return self._count.total

    @contextlib.contextmanager
    def hold(self) -> Iterator[BodyShare]:
        """Hold the share of one request inside the block; it is given back when the request is
        over.
        """
        share = BodyShare(self)
        try:
            yield share
        finally:
            self.give(share.num_bytes)

    def take(self, num_bytes: int) -> None:
        """Count bytes that have come; ApiProblem (503) if there is no room for them."""
        if self._count.total + num_bytes > self._most:
            raise ApiProblem(
                503, "too many large requests at once", code="busy", retry_after_s=RETRY_S
            )
        self._count.own += num_bytes

    def give(self, num_bytes: int) -> None:
        """Count bytes that are no longer held."""
        self._count.own -= num_bytes


@dataclass(slots=True)
class BodyShare:
    """What one request's body takes of the budget."""

    budget: BodyBudget
    num_bytes: int = 0

    def add(self, num_bytes: int) -> None:
        """Take more; ApiProblem (503) if there is no room."""
        self.budget.take(num_bytes)
        self.num_bytes += num_bytes


class ConnectionCount(Protocol):
    """Counts open connections by the address they come from, and cuts those that are too many."""

    def opened(self, address: str, cut: Callable[[], None]) -> int:
        """Count a connection and return its number; ``cut`` is called, now or later, if it is one
        too many.
        """
        ...

    def closed(self, number: int) -> None:
        """Count a connection that is gone."""
        ...


class Connections:
    """Those of this process, or of all its workers."""

    def __init__(self, most: int) -> None:
        """``most`` of one address; 0 = no limit."""
        self._most = most
        self._of_address: Counter[str] = Counter()
        self._open: dict[int, str] = {}
        self._last = 0

    def opened(self, address: str, cut: Callable[[], None]) -> int:
        """Count it."""
        self._last += 1
        self._open[self._last] = address
        self._of_address[address] += 1
        if self._most and self._of_address[address] > self._most:
            cut()
        return self._last

    def closed(self, number: int) -> None:
        """Count it no more."""
        address = self._open.pop(number)
        self._of_address[address] -= 1
        if not self._of_address[address]:
            del self._of_address[address]


async def read_body(scope: Scope, receive: Receive, limits: Limits, share: BodyShare) -> bytes:
    """Read the whole body; ApiProblem if it is too large, too slow, compressed, or its client goes
    away.
    """
    encoding = next((v for k, v in scope["headers"] if k == b"content-encoding"), b"identity")
    if encoding.lower() != b"identity":
        raise ApiProblem(
            415, "compressed bodies are not read; send it plain", code="compressed_body"
        )
    declared = next((v for k, v in scope["headers"] if k == b"content-length"), b"0")
    if declared.isdigit() and int(declared) > limits.body_bytes:
        await _discard(receive, 2 * limits.body_bytes)
        raise _too_large(limits)
    parts: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(limits.body_s):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ApiProblem(499, "the client went away")
                part = message.get("body", b"")
                size += len(part)
                if size > limits.body_bytes:
                    await _discard(receive, 2 * limits.body_bytes)
                    raise _too_large(limits)
                share.add(len(part))
                parts.append(part)
                if not message.get("more_body", False):
                    return parts[0] if len(parts) == 1 else b"".join(parts)
    except TimeoutError:
        raise ApiProblem(
            408, f"the body did not arrive within {limits.body_s:g} s", code="slow_body"
        ) from None


async def _discard(receive: Receive, num_bytes: int) -> None:
    """Read on for a while: a client that is still sending would not see the answer."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(DISCARD_S):
            while num_bytes > 0:
                message = await receive()
                num_bytes -= len(message.get("body", b""))
                if not message.get("more_body", False):
                    return


def _too_large(limits: Limits) -> ApiProblem:
    mib = limits.body_bytes / (1 << 20)
    return ApiProblem(413, f"the body is larger than {mib:g} MiB", code="body_too_large")
