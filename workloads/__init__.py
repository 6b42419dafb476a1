"""Trace importers and synthetic workloads by name; values are dotted paths, loaded when used."""

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
    "codex": "workloads.codex.importer.IMPORTER",
    "atif": "workloads.atif.importer.IMPORTER",
    "otel_genai": "workloads.otel_genai.importer.IMPORTER",
    "langfuse": "workloads.langfuse.importer.IMPORTER",
    "litellm": "workloads.litellm.importer.IMPORTER",
    "inspect_log": "workloads.inspect_log.importer.IMPORTER",
    "bailian": "workloads.bailian.importer.IMPORTER",
    "csv_requests": "workloads.csv_requests.importer.IMPORTER",
    "huggingface": "workloads.huggingface.importer.IMPORTER",
}
"""Format -> importer (an instance)."""

WORKLOADS: dict[str, str] = {
    "swe-bench": "workloads.synthetic.SWE_BENCH",
    "swe-bench-slow": "workloads.synthetic.SWE_BENCH_SLOW",
    "swe-short": "workloads.synthetic.SWE_SHORT",
    "terminal-bench": "workloads.synthetic.TERMINAL_BENCH",
    "dev-interactive": "workloads.synthetic.DEV_INTERACTIVE",
    "git-task": "workloads.synthetic.GIT_TASK",
    "repo-long": "workloads.synthetic.REPO_LONG",
    "hybrid": "workloads.synthetic.HYBRID",
    "long-tail-gap": "workloads.synthetic.LONG_TAIL_GAP",
    "sample": "workloads.sample.SAMPLE",
    "tasks": "workloads.tasks.source.TASKS",
    "tasks-quick": "workloads.tasks.source.QUICK",
    "tasks-mixed": "workloads.tasks.source.MIXED",
    "swe-bench-tasks": "workloads.swe_bench_tasks.source.TASKS",
}
"""Name -> synthetic workload, a shipped trace, or tasks that live agents can work on."""
