"""Where the bytes that a command writes go: a file that appears when it is whole, or standard output."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def output(out: Path | None) -> Iterator[BinaryIO]:
    """A stream to write to; ``None`` is standard output."""
    from marsbench.trace import io

    if out is None:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
    else:
        with io.open_atomic(out) as stream:
            yield stream
