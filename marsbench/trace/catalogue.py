"""Public agent traces that ``trace fetch`` can get: where they are, whose they are, who reads them."""

from __future__ import annotations

from dataclasses import dataclass

from marsbench.registry import unknown


@dataclass(frozen=True, slots=True)
class Release:
    """One file at a URL."""

    url: str

    @property
    def file_name(self) -> str:
        return self.url.rsplit("/", 1)[-1]


@dataclass(frozen=True, slots=True)
class Archive:
    """One folder of a repository, taken from its source archive (.tar.gz) at a commit."""

    url: str
    folder: str
    """Path inside the repository; only what is below it is kept."""


@dataclass(frozen=True, slots=True)
class HubDataset:
    """One split of a Hugging Face dataset, kept as JSON lines (one row each, nulls left out)."""

    repo: str
    revision: str
    split: str = "train"


@dataclass(frozen=True, slots=True)
class PublicSet:
    """One public set of traces."""

    name: str
    summary: str
    licence: str
    size: str
    """As published, for people."""
    importer: str
    """Name of the format (see ``trace import --format``)."""
    source: Release | Archive | HubDataset
    sha256: str | None = None
    """Published or pinned checksum. None: none is published; the first fetch records what it got
    and later fetches must match it."""


_SETS = (
    PublicSet(
        name="tracelab",
        summary="Claude Code and Codex sessions of 43 developers, 357,161 LLM calls with timed tools",
        licence="CC-BY-4.0",
        size="4,265 sessions",
        importer="tracelab",
        source=Release(
            "https://github.com/uw-syfi/TraceLab/releases/download/v2026-06-08-syfi-trace/"
            "syfi_coding_trace.jsonl.gz"
        ),
        sha256="9d265eae69a31cae203848bea936f018148eed7ca8bf56050c5abe96da0b4e6b",
    ),
    PublicSet(
        name="weka",
        summary="Claude Code sessions with 64-token block hashes, interactive (kv-cache-tester)",
        licence="Apache-2.0",
        size="739 sessions, 59,204 LLM calls, about 450 MB unpacked",
        importer="weka",
        source=Archive(
            "https://github.com/callanjfox/kv-cache-tester/archive/94f6046.tar.gz", "traces"
        ),
    ),
    PublicSet(
        name="weka-agentx",
        summary="Claude Code sessions with sub-agents, the set of the AgentX scenario",
        licence="Apache-2.0",
        size="393 sessions",
        importer="weka",
        source=HubDataset(
            "semianalysisai/cc-traces-weka-062126", "23f152f6f0f9399a85901b89a6458def0ef16729"
        ),
    ),
    PublicSet(
        name="agentcgroup",
        summary="unattended Claude Code on SWE-rebench tasks, native logs with timed tools",
        licence="GPL-2.0 (use the logs, do not bundle them)",
        size="189 sessions, 7,723 LLM calls",
        importer="claude_code",
        source=Archive(
            "https://github.com/eunomia-bpf/agentcgroup/archive/5af9e7b.tar.gz", "experiments"
        ),
    ),
    PublicSet(
        name="mooncake-conversation",
        summary="Mooncake FAST'25 conversation requests (no sessions, no tools)",
        licence="Apache-2.0",
        size="12,031 requests",
        importer="mooncake",
        source=Release(
            "https://raw.githubusercontent.com/kvcache-ai/Mooncake/"
            "a2a4b18ac537fd798d50e6e9f57031ce86419a37/FAST25-release/traces/"
            "conversation_trace.jsonl"
        ),
    ),
    PublicSet(
        name="mooncake-synthetic",
        summary="Mooncake FAST'25 synthetic requests (no sessions, no tools)",
        licence="Apache-2.0",
        size="3,993 requests",
        importer="mooncake",
        source=Release(
            "https://raw.githubusercontent.com/kvcache-ai/Mooncake/"
            "3cca71daccf2a7afb8fe3f0295358f70e3a69fdb/FAST25-release/traces/synthetic_trace.jsonl"
        ),
    ),
)

CATALOGUE: dict[str, PublicSet] = {entry.name: entry for entry in _SETS}


def find_set(name: str) -> PublicSet:
    """The set called ``name``; ConfigError with the closest match if there is none."""
    if name not in CATALOGUE:
        raise unknown("public trace", name, CATALOGUE)
    return CATALOGUE[name]
