"""Published agent schedulers as pure policies, one file each; README.md says what each reproduces."""

from __future__ import annotations

SYSTEMS: dict[str, str] = {
    "vllm": "baselines.vllm.VLLM",
    "vllm-priority": "baselines.vllm.VLLM_PRIORITY",
    "sglang": "baselines.sglang.SGLANG",
    "sglang-lpm": "baselines.sglang.SGLANG_LPM",
    "sglang-hrrn": "baselines.sglang.SGLANG_HRRN",
    "sglang-spf": "baselines.sglang.SGLANG_SPF",
    "sglang-priority": "baselines.sglang.SGLANG_PRIORITY",
    "sglang-tlru": "baselines.sglang.SGLANG_TLRU",
    "sglang-session-radix": "baselines.sglang.SGLANG_SESSION_RADIX",
    "session-fcfs": "baselines.session_fcfs.SESSION_FCFS",
    "fixed-ttl": "baselines.fixed_ttl.FIXED_TTL",
    "static": "baselines.static.STATIC",
    "autellix": "baselines.autellix.AUTELLIX",
    "infercept": "baselines.infercept.INFERCEPT",
    "continuum": "baselines.continuum.CONTINUUM",
    "continuum-dynamic": "baselines.continuum_dynamic.CONTINUUM_DYNAMIC",
    "thunderagent": "baselines.thunderagent.THUNDERAGENT",
    "thunderagent-paper": "baselines.thunderagent.THUNDERAGENT_PAPER",
    "thunderagent-dynamo": "baselines.thunderagent_dynamo.THUNDERAGENT_DYNAMO",
    "progress-ttl": "baselines.progress_ttl.PROGRESS_TTL",
    "concur": "baselines.concur.CONCUR",
    "saga-ttl": "baselines.saga_ttl.SAGA_TTL",
    "evolved-gate": "baselines.evolved_gate.EVOLVED_GATE",
    "session-affinity": "baselines.session_affinity.SESSION_AFFINITY",
    "residual-sjf": "baselines.residual_sjf.RESIDUAL_SJF",
    "uniboost": "baselines.uniboost.UNIBOOST",
    "program-fairness": "baselines.program_fairness.PROGRAM_FAIRNESS",
    "tlru": "baselines.tlru.TLRU",
    "cachewise": "baselines.cachewise.CACHEWISE",
    "oracle": "baselines.oracle.ORACLE",
}
"""System name -> dotted path of a ``marsbench.system.System``."""

ROUTERS: dict[str, str] = {
    "dynamo-kv": "baselines.routing.dynamo_kv.DynamoKv",
    "llm-d": "baselines.routing.llm_d.LlmD",
    "lmetric": "baselines.routing.lmetric.LMetric",
    "progress-ttl": "baselines.routing.progress_ttl.TtlBinding",
    "most-room": "baselines.routing.thunderagent.MostRoom",
}
"""Router name -> dotted path of a class that is made of a ``PolicyContext``."""
