"""MARS: the scheduler under study, the authors' public preview of it, and its ablations."""

SYSTEMS: dict[str, str] = {
    "mars": "mars_impl.policy.MARS",
    "mars-sglang": "mars_impl.policy.MARS_SGLANG",
    "mars-preview": "mars_impl.preview.PREVIEW",
    "mars-no-control-plane": "mars_impl.policy.NO_CONTROL_PLANE",
    "mars-no-cpu-signal": "mars_impl.policy.NO_CPU_SIGNAL",
    "mars-no-kv-signal": "mars_impl.policy.NO_KV_SIGNAL",
    "mars-static-window": "mars_impl.policy.STATIC_WINDOW",
    "mars-no-coordinator": "mars_impl.policy.NO_COORDINATOR",
    "mars-no-retention": "mars_impl.policy.NO_RETENTION",
    "mars-fixed-ttl": "mars_impl.policy.FIXED_TTL",
    "mars-one-threshold": "mars_impl.policy.ONE_THRESHOLD",
    "mars-longest-first": "mars_impl.policy.LONGEST_FIRST",
    "mars-no-lending": "mars_impl.policy.NO_LENDING",
    "mars-no-slo": "mars_impl.policy.NO_SLO",
    "mars-no-tool-priority": "mars_impl.policy.NO_TOOL_PRIORITY",
}
"""System name -> dotted path of a ``marsbench.system.System``."""

STUDIES: dict[str, str] = {"mars": "mars_impl.paper.STUDY"}
"""Evaluation that ``marsbench reproduce`` repeats -> its file."""
