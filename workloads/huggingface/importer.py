"""Importer of Hugging Face datasets: finds the format of the rows and hands them over."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import msgspec

from marsbench.core import Session
from marsbench.errors import TraceError
from marsbench.extras import require
from marsbench.trace import faults
from marsbench.trace.importer import TraceSample
from workloads.agentic_mooncake.importer import IMPORTER as AGENTIC_MOONCAKE
from workloads.atif.importer import IMPORTER as ATIF
from workloads.bailian.importer import IMPORTER as BAILIAN
from workloads.claude_code.importer import IMPORTER as CLAUDE_CODE
from workloads.codex.importer import IMPORTER as CODEX
from workloads.langfuse.importer import IMPORTER as LANGFUSE
from workloads.litellm.importer import IMPORTER as LITELLM
from workloads.mini_swe_agent.importer import IMPORTER as MINI_SWE_AGENT
from workloads.mooncake.importer import IMPORTER as MOONCAKE
from workloads.openhands_v0.importer import IMPORTER as OPENHANDS_V0
from workloads.openhands_v1.importer import IMPORTER as OPENHANDS_V1
from workloads.otel_genai.importer import IMPORTER as OTEL_GENAI
from workloads.rows import Row, RowSource, has_keys
from workloads.swe_agent.importer import IMPORTER as SWE_AGENT
from workloads.swe_agent.importer import session_name
from workloads.swe_smith.importer import message_list_session
from workloads.tracelab.importer import IMPORTER as TRACELAB
from workloads.trie.importer import IMPORTER as TRIE
from workloads.weka.importer import IMPORTER as WEKA

HUB = "hf:"
"""``hf:OWNER/NAME`` or ``hf:OWNER/NAME:SPLIT`` names a dataset of the hub."""
_TABLES = (".parquet", ".arrow")
_MAGIC = (b"PAR1", b"ARROW1")
_JSON_COLUMNS = ("messages", "trajectory", "history", "metrics", "requests", "tools", "info")
"""Columns that datasets often store as JSON text."""


class RowFormat(Protocol):
    """An importer that also takes decoded rows."""

    name: str

    def matches(self, value: Any) -> bool: ...

    def sessions(self, rows: RowSource) -> Iterator[Session]: ...


class MessageLists:
    """Chat message lists: SWE-smith's, SWE-Gym's (``messages``), nebius' (``trajectory``)."""

    name = "message_lists"

    def matches(self, value: Any) -> bool:
        return _message_field(value) is not None

    def sessions(self, rows: RowSource) -> Iterator[Session]:
        for number, row in enumerate(rows()):
            field = _message_field(row.value)
            if field is None:
                raise row.error("no list of messages", "messages")
            name = session_name(row, None)
            # Several runs of one instance: the row number keeps them apart.
            session_id = name if "traj_id" in row.value else f"{name}:{number}"
            yield message_list_session(row, session_id, field, "swe-agent")


def _message_field(value: Any) -> str | None:
    for field in ("messages", "trajectory", "conversations"):
        found = value.get(field) if isinstance(value, dict) else None
        if isinstance(found, list) and found and has_keys(found[0], "role"):
            return field
    return None


FORMATS: tuple[RowFormat, ...] = (
    TRACELAB,
    WEKA,
    MOONCAKE,
    AGENTIC_MOONCAKE,
    BAILIAN,
    TRIE,
    ATIF,
    CODEX,
    OTEL_GENAI,
    LANGFUSE,
    LITELLM,
    OPENHANDS_V0,
    OPENHANDS_V1,
    CLAUDE_CODE,
    SWE_AGENT,
    MINI_SWE_AGENT,
    MessageLists(),
)
"""In order of how much a row must show to match."""


class HuggingFace:
    """Streams rows of a dataset into the importer of their format."""

    name = "huggingface"
    summary = "Hugging Face datasets (hf:OWNER/NAME, parquet, arrow) of rows in a known format"
    provenance: Mapping[str, str] = {
        "turns": "as the format of the rows says; message lists as in swe_smith",
    }

    def sniff(self, sample: TraceSample) -> bool:
        if str(sample.path).startswith(HUB) or sample.head.startswith(_MAGIC):
            return True
        return any(Path(name).suffix in _TABLES for name in sample.names)

    def read(self, path: Path) -> Iterator[Session]:
        def rows() -> Iterator[Row]:
            for number, value in enumerate(_dataset_rows(path), start=1):
                row = Row(_clean(value), str(path), number)
                if not faults.current().leaves_out(row.path, number, row.value):
                    yield row

        first = next(rows(), None)
        if first is None:
            raise TraceError("the dataset has no rows", path=str(path))
        return find_format(first).sessions(rows)


def find_format(row: Row) -> RowFormat:
    """Return the format of a dataset, which its first row tells."""
    for known in FORMATS:
        if known.matches(row.value):
            return known
    names = ", ".join(known.name for known in FORMATS)
    columns = ", ".join(sorted(row.value))
    raise row.error(f"rows with columns {columns} are in no known format ({names})")


def _clean(value: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row without the nulls that a table fills in, and with the JSON text of known columns
    decoded.
    """
    row = {key: _without_nulls(item) for key, item in value.items() if item is not None}
    for column in _JSON_COLUMNS:
        text = row.get(column)
        if isinstance(text, str) and text[:1] in {"[", "{"}:
            try:
                row[column] = msgspec.json.decode(text)
            except msgspec.DecodeError:
                continue  # plain text that happens to begin like JSON
    return row


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_without_nulls(item) for item in value]
    if hasattr(value, "isoformat"):
        return value.isoformat()
    return value


def _dataset_rows(path: Path) -> Iterator[Mapping[str, Any]]:
    """Yield the rows of a dataset; where it has several splits, the train split is taken."""
    require("datasets", f"reading {path}")
    import datasets

    try:
        if str(path).startswith(HUB):
            name, _, split = str(path).removeprefix(HUB).partition(":")
            found = datasets.load_dataset(name, split=split or "train", streaming=True)
        elif (path / "dataset_info.json").exists() or (path / "dataset_dict.json").exists():
            found = datasets.load_from_disk(str(path))
            found = (
                found.get("train", next(iter(found.values()))) if isinstance(found, dict) else found
            )
        else:
            files = _table_files(path)
            kind = "arrow" if files[0].suffix == ".arrow" else "parquet"
            names = [str(file) for file in files]
            found = datasets.load_dataset(kind, data_files=names, split="train", streaming=True)
        yield from found
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        problem = f"the dataset cannot be read ({str(error).splitlines()[0]})"
        raise TraceError(problem, path=str(path)) from error


def _table_files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    found = sorted(file for file in path.rglob("*") if file.suffix in _TABLES)
    train = [file for file in found if file.name.startswith("train") or file.parent.name == "train"]
    found = train or found
    if not found:
        raise TraceError(f"no {' or '.join(_TABLES)} file below it", path=str(path))
    return [file for file in found if file.suffix == found[0].suffix]


IMPORTER = HuggingFace()
