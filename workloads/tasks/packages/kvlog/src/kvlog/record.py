"""Records on disk: checksum, lengths, key, value."""

from __future__ import annotations

import struct
import zlib

HEADER = struct.Struct("<IHi")
"""Checksum, key bytes, value bytes; -1 = the key is deleted."""
DELETED = -1


class CorruptError(ValueError):
    """A record's checksum is wrong, or it is cut off."""


def encode(key: bytes, value: bytes | None) -> bytes:
    """One record."""
    size = DELETED if value is None else len(value)
    body = key + (value or b"")
    lengths = HEADER.pack(0, len(key), size)[4:]
    return struct.pack("<I", zlib.crc32(lengths + body)) + lengths + body


def decode(data: bytes, at: int) -> tuple[bytes, bytes | None, int]:
    """Key, value and end of the record at an offset."""
    if at + HEADER.size > len(data):
        raise CorruptError("cut off in a header")
    checksum, key_size, value_size = HEADER.unpack_from(data, at)
    start = at + HEADER.size
    end = start + key_size + max(value_size, 0)
    if end > len(data):
        raise CorruptError("cut off in a body")
    if zlib.crc32(data[at + 4 : end]) != checksum:
        raise CorruptError("wrong checksum")
    key = data[start : start + key_size]
    value = None if value_size == DELETED else data[start + key_size : end]
    return key, value, end
