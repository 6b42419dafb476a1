"""Trace importers and generated workloads by name; values are dotted paths, loaded when used."""

IMPORTERS: dict[str, str] = {
    "tracelab": "workloads.tracelab.importer.IMPORTER",
    "weka": "workloads.weka.importer.IMPORTER",
    "mooncake": "workloads.mooncake.importer.IMPORTER",
    "agentic_mooncake": "workloads.agentic_mooncake.importer.IMPORTER",
    "trie": "workloads.trie.importer.IMPORTER",
    "swe_agent": "workloads.swe_agent.importer.IMPORTER",
    "swe_smith": "workloads.swe_smith.importer.IMPORTER",
    "mini_swe_agent": "workloads.mini_swe_agent.importer.IMPORTER",
    "openhands_v0": "workloads.openhands_v0.importer.IMPORTER",
    "openhands_v1": "workloads.openhands_v1.importer.IMPORTER",
    "claude_code": "workloads.claude_code.importer.IMPORTER",
    "huggingface": "workloads.huggingface.importer.IMPORTER",
}
"""Format -> importer (an instance)."""

WORKLOADS: dict[str, str] = {
    "swe-bench": "workloads.generated.SWE_BENCH",
    "swe-bench-slow": "workloads.generated.SWE_BENCH_SLOW",
    "swe-short": "workloads.generated.SWE_SHORT",
    "terminal-bench": "workloads.generated.TERMINAL_BENCH",
    "dev-interactive": "workloads.generated.DEV_INTERACTIVE",
    "git-task": "workloads.generated.GIT_TASK",
    "repo-long": "workloads.generated.REPO_LONG",
    "hybrid": "workloads.generated.HYBRID",
    "long-tail-gap": "workloads.generated.LONG_TAIL_GAP",
}
"""Name -> generated workload."""
