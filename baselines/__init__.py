"""Published agent schedulers as pure policies, one file each; README.md says what each reproduces."""

from __future__ import annotations

SYSTEMS: dict[str, str] = {
    "vllm": "baselines.vllm.VLLM",
    "vllm-priority": "baselines.vllm.VLLM_PRIORITY",
    "session-fcfs": "baselines.session_fcfs.SESSION_FCFS",
    "fixed-ttl": "baselines.fixed_ttl.FIXED_TTL",
    "static": "baselines.static.STATIC",
    "autellix": "baselines.autellix.AUTELLIX",
    "infercept": "baselines.infercept.INFERCEPT",
    "continuum": "baselines.continuum.CONTINUUM",
    "continuum-dynamic": "baselines.continuum_dynamic.CONTINUUM_DYNAMIC",
    "thunderagent": "baselines.thunderagent.THUNDERAGENT",
    "concur": "baselines.concur.CONCUR",
    "oracle": "baselines.oracle.ORACLE",
}
"""System name -> dotted path of a ``marsbench.system.System``."""
