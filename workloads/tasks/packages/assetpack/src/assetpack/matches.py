"""Compression: literal bytes, and copies of what came before."""

from __future__ import annotations

from assetpack import varint

SHORTEST = 4
"""A copy of fewer bytes does not pay."""


def compress(data: bytes, effort: int = 8) -> bytes:
    """``data`` as literals and copies; ``effort`` earlier places are tried for each copy."""
    out = bytearray()
    places: dict[bytes, list[int]] = {}
    literals = bytearray()
    at = 0
    while at < len(data):
        length, distance = _best(data, at, places, effort)
        if length < SHORTEST:
            literals.append(data[at])
            _note(data, at, places)
            at += 1
            continue
        _flush(literals, out)
        varint.put(length * 2 + 1, out)
        varint.put(distance, out)
        for place in range(at, at + length):
            _note(data, place, places)
        at += length
    _flush(literals, out)
    return bytes(out)


def expand(packed: bytes) -> bytes:
    """What ``compress`` was given."""
    out = bytearray()
    at = 0
    while at < len(packed):
        head, at = varint.get(packed, at)
        size = head >> 1
        if head & 1:
            distance, at = varint.get(packed, at)
            start = len(out) - distance
            if start < 0:
                raise ValueError("a copy of what is not there")
            for index in range(size):
                out.append(out[start + index])
        else:
            out += packed[at : at + size]
            at += size
    return bytes(out)


def _best(
    data: bytes, at: int, places: dict[bytes, list[int]], effort: int
) -> tuple[int, int]:
    best = (0, 0)
    for start in reversed(places.get(data[at : at + SHORTEST], ())[-effort:]):
        length = 0
        while at + length < len(data) and data[start + length] == data[at + length]:
            length += 1
        if length > best[0]:
            best = (length, at - start)
    return best


def _note(data: bytes, at: int, places: dict[bytes, list[int]]) -> None:
    key = data[at : at + SHORTEST]
    if len(key) == SHORTEST:
        places.setdefault(key, []).append(at)


def _flush(literals: bytearray, out: bytearray) -> None:
    if literals:
        varint.put(len(literals) * 2, out)
        out += literals
        literals.clear()
