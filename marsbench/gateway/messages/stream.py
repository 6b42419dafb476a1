"""A stream of server-sent events on its way to the client: passed on as it is, read in batches."""

from __future__ import annotations

from collections.abc import Iterator

from marsbench.gateway.messages.reply import Reply

MAX_EVENT_BYTES = 8 << 20
"""What comes without an end of event is passed on beyond this."""
BATCH_BYTES = 1 << 15
"""Bytes that have been passed on and are still to be read."""


class StreamPass:
    """Whole events out, in the order and the bytes in which they came.

    A stream's events matter to the gateway when it begins (the first output) and when it has ended
    (counts, calls, digests), so in between nothing is decoded: events are read many at a time.
    """

    def __init__(self, reply: Reply, *, hide_usage: bool) -> None:
        """``hide_usage``: the token counts were asked for by us, and the client does not see them."""
        self._reply = reply
        self._hide_usage = hide_usage
        self._rest = b""
        self._unread: list[bytes] = []
        self._unread_bytes = 0

    def feed(self, data: bytes) -> bytes:
        """Return what of these bytes, and of those held back before, goes to the client now."""
        if self._rest or not data.endswith(b"\n\n"):
            data = self._whole_events(data)
            if not data:
                return b""
        if self._hide_usage and b'"usage"' in data:
            return self._without_usage(data)
        self._unread.append(data)
        self._unread_bytes += len(data)
        if not self._reply.events or self._unread_bytes > BATCH_BYTES:
            self._read()
        return data

    def finish(self) -> bytes:
        """End the stream: read what is still to be read, and return what came after the last
        event.
        """
        self._read()
        rest, self._rest = self._rest, b""
        return rest

    def _whole_events(self, data: bytes) -> bytes:
        data = self._rest + data
        end = _last_end(data)
        if end < 0 and len(data) > MAX_EVENT_BYTES:
            end = len(data)
        self._rest = data[max(end, 0) :]
        return data[: max(end, 0)]

    def _without_usage(self, data: bytes) -> bytes:
        self._read()
        kept = []
        for event in split_events(data):
            payload = event_data(event)
            if not (payload and self._reply.feed(payload)):
                kept.append(event)
        return b"".join(kept)

    def _read(self) -> None:
        if not self._unread:
            return
        events = split_events(b"".join(self._unread))
        self._unread.clear()
        self._unread_bytes = 0
        self._reply.feed_all([data for data in map(event_data, events) if data])


def split_events(data: bytes) -> Iterator[bytes]:
    """Yield complete events, with the blank line that ends them."""
    if b"\r" not in data:
        *events, rest = data.split(b"\n\n")
        for event in events:
            yield event + b"\n\n"
        if rest:
            yield rest
        return
    while data:
        end = _first_end(data)
        yield data[:end]
        data = data[end:]


def event_data(event: bytes) -> bytes:
    """Return the payload of an event: its data lines joined; empty for comments and ``[DONE]``."""
    if event.startswith(b"data: ") and event.find(b"\n", 6) >= len(event) - 2:
        data = event[6:].strip()
    else:
        lines = [line[5:].lstrip(b" ") for line in event.splitlines() if line.startswith(b"data:")]
        data = b"\n".join(lines)
    return b"" if data == b"[DONE]" else data


def _first_end(data: bytes) -> int:
    """Index after the first blank line; the length if there is none."""
    ends = [
        at + size for at, size in ((data.find(b"\n\n"), 2), (data.find(b"\r\n\r\n"), 4)) if at >= 0
    ]
    return min(ends, default=len(data))


def _last_end(data: bytes) -> int:
    """Index after the last blank line; -1 if there is none."""
    plain, dos = data.rfind(b"\n\n"), data.rfind(b"\r\n\r\n")
    return max(plain + 2 if plain >= 0 else -1, dos + 4 if dos >= 0 else -1)
