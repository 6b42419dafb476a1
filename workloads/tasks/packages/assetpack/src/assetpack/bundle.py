"""The archive: an index of names and sizes, and one compressed body."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from pathlib import PurePosixPath

from assetpack import varint
from assetpack.matches import compress, expand

MAGIC = b"PACK1"


def order(names: Mapping[str, bytes]) -> list[str]:
    """Files of one kind side by side, small ones first."""
    return sorted(names, key=lambda name: (PurePosixPath(name).suffix, len(names[name]), name))


def pack(files: Mapping[str, bytes], effort: int = 8) -> bytes:
    """One archive of all files."""
    names = order(files)
    body = b"".join(files[name] for name in names)
    index = bytearray()
    varint.put(len(names), index)
    for name in names:
        encoded = name.encode()
        varint.put(len(encoded), index)
        index += encoded
        varint.put(len(files[name]), index)
    checksum = zlib.crc32(body).to_bytes(4, "big")
    return MAGIC + checksum + bytes(index) + compress(body, effort)


def unpack(archive: bytes) -> dict[str, bytes]:
    """Names and contents; ValueError if something is broken."""
    if not archive.startswith(MAGIC):
        raise ValueError("no archive")
    at = len(MAGIC)
    checksum = archive[at : at + 4]
    at += 4
    count, at = varint.get(archive, at)
    entries = []
    for _ in range(count):
        size, at = varint.get(archive, at)
        name = archive[at : at + size].decode()
        at += size
        length, at = varint.get(archive, at)
        entries.append((name, length))
    body = expand(archive[at:])
    if zlib.crc32(body).to_bytes(4, "big") != checksum:
        raise ValueError("wrong checksum")
    files = {}
    start = 0
    for name, length in entries:
        files[name] = body[start : start + length]
        start += length
    return files
