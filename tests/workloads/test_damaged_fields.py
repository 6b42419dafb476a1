"""Importers on files in which one value is not what it should be."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path
from typing import Any

import pytest

from marsbench.errors import TraceError
from marsbench.trace.schema import decode_session, encode_session
from marsbench.trace.source import find_importer
from workloads import IMPORTERS

JUNK = (None, "x", -3, 2.5, True, [], {}, [1], [{}], {"a": 1}, "2026-01-01", 10**6)
ROUNDS = 100


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) inside a JSON value."""
    found: list[tuple[Any, Any]] = []
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, item in items:
        found.append((value, key))
        if isinstance(item, dict | list):
            found += places(item)
    return found


def text_of(file: Path) -> str:
    content = file.read_bytes()
    return (gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content).decode()


@pytest.mark.parametrize("name", sorted(set(IMPORTERS) - {"huggingface", "csv_requests"}))
def test_a_wrong_value_is_read_over_or_named(name, formats, tmp_path):
    """Any value replaced by junk gives sound sessions or a TraceError with the file, never else."""
    path = formats.writers[name](tmp_path)
    files = sorted(file for file in tmp_path.rglob("*") if file.is_file())
    originals = {file: file.read_bytes() for file in files}
    texts = {file: text_of(file) for file in files}
    rng = random.Random(1)
    for _ in range(ROUNDS):
        file = rng.choice(files)
        lines = texts[file].splitlines() if file.suffix == ".jsonl" else [texts[file]]
        values = [json.loads(line) for line in lines]
        container, key = rng.choice(places(values))
        container[key] = junk = rng.choice(JUNK)
        file.write_text("\n".join(json.dumps(value) for value in values))
        try:
            problem = outcome(name, path)
        except Exception as error:
            error.add_note(f"{file.name}: {key!r} = {junk!r}")
            raise
        assert problem is None or str(tmp_path) in problem
        file.write_bytes(originals[file])


def outcome(name: str, path: Path) -> str | None:
    """The line of a TraceError; None if all sessions are sound."""
    try:
        for session in find_importer(name).read(path):
            assert decode_session(encode_session(session)) == session
    except TraceError as error:
        return str(error)
    return None
