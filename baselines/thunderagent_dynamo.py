"""ThunderAgent as merged into Dynamo: a band between pausing and restoring, exact counts, a lease.

Source: ai-dynamo/dynamo, pull request 9448 (merged) and the router's code since.
Reproduced: the rules of thunderagent.py with these changes: sessions pause when 95 % of the cache are
in use, until 80 % are; they come back while 85 % are not exceeded; a new one enters while it fits
into the whole cache; contexts in tools never decay and nothing is subtracted for sharing; a
session that has been in its tools for 600 s counts as gone and comes back as a new one. Differs: one
replica, so no placement; the priorities that it gives turns in the engine near the mark are left out.
"""

from __future__ import annotations

from baselines.thunderagent import PauseRules, ThunderAgent
from marsbench.core import PolicyContext
from marsbench.system import Policies, System

RULES = PauseRules(
    capacity_share=0.95,
    target=0.80 / 0.95,
    restore=0.85 / 0.95,
    entry=1.0 / 0.95,
    lease_s=600.0,
    subtract_shared=0.0,
)


def build(context: PolicyContext) -> Policies:
    """Build ThunderAgent as NVIDIA Dynamo ships it."""
    return Policies(admission=ThunderAgent(context, RULES))


THUNDERAGENT_DYNAMO = System(
    name="thunderagent-dynamo",
    summary="ThunderAgent as in Dynamo: pause at 95 % of the cache, restore below 85 %, lease of 600 s",
    build=build,
    tunable={
        "period_s": (1.0, 2.0, 5.0),
        "capacity_share": (0.85, 0.95, 1.1),
        "target": (0.8, 0.9, 1.0),
        "restore": (0.8, 0.9, 1.0),
    },
    limits={
        "period_s": (0.25, 60.0),
        "capacity_share": (0.25, 4.0),
        "target": (0.1, 1.0),
        "restore": (0.1, 1.0),
    },
)
