"""What clients send as request priority, in the replay, on a live server and in the gateway alike."""

from __future__ import annotations

from marsbench.engine.life import SessionState

PS_PER_US = 1_000_000


def request_priority(rule: str, state: SessionState) -> int:
    """Return the priority of a session's current turn under a system's rule (``System.priority``).

    Engines take the smallest first. ``session_arrival``: when the session arrived, in whole
    microseconds; a sub-agent has its root's arrival. ``continuation_first``: 1 for the first turn
    and 0 for all later ones. Any other rule: 0 for every turn.
    """
    if rule == "session_arrival":
        while state.parent is not None:
            state = state.parent
        return state.arrival_ps // PS_PER_US
    if rule == "continuation_first":
        return 0 if state.turn_index else 1
    return 0
