"""Numbers in as few bytes as they need: seven bits each, the last without the high bit."""

from __future__ import annotations


def put(number: int, out: bytearray) -> None:
    """Append a number that is not negative."""
    if number < 0:
        raise ValueError("negative")
    while number >= 0x80:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)


def get(data: bytes, at: int) -> tuple[int, int]:
    """A number and where it ends."""
    number = 0
    shift = 0
    while True:
        byte = data[at]
        at += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, at
        shift += 7
