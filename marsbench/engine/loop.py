"""Virtual time: the loop that jumps from event to event, between a replay and an engine core.

External events (arrivals, tool results, ticks) are handled at their own times, in order; the engine
sees them at its next step, as a real one does.
"""

from __future__ import annotations

from marsbench.engine.agenda import FOREVER
from marsbench.engine.base import CoreStats
from marsbench.engine.replay import Replay
from marsbench.errors import EngineError


def play(replay: Replay) -> CoreStats:
    """Run a replay to its end in its core's own time.

    Raises PolicyError if a policy stops the run, EngineError if the core cannot go on.
    """
    core, life = replay.core, replay.life
    now = 0
    while True:
        external = replay.next_external_ps()
        if external <= now:
            replay.external(external)
            continue
        if life.finished:
            replay.engine_finished(now)
            continue
        replay.sample_if_due(now)
        if core.idle():
            if external < FOREVER:
                now = external
            elif replay.waits_for_admission:
                replay.nothing_runs(now)
            else:
                break
            continue
        after = core.advance(now, external)
        if after >= FOREVER:
            raise EngineError("the engine has work it can never schedule (a core invariant broke)")
        now = after
    replay.end(now)
    return core.stats
