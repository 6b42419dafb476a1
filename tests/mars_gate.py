"""A MARS at the gate, and what it lets in: for the tests of its parts."""

from __future__ import annotations

from mars_impl.scheduler import Mars

PLAIN = {"kv_target": 1, "headroom_turns": 1, "entry_turns": 1, "lend": 0,
         "tick_s": 1}  # fmt: skip
"""A session needs its private tokens plus one turn of growth, 800 tokens a priori, of 16,000."""


def mars_of(build, host_blocks=0, **params):
    """With ``PLAIN`` parameters but for these, and the story that it hears; 1,000 blocks on the GPU."""
    mars = Mars(build.context(host_blocks=host_blocks, params={**PLAIN, **params}))
    mars.admit([], build.system(), -1.0)  # it is the gate: nobody is in who did not ask
    return mars, build.story(mars.on_event)


def ask(mars, build, pending, now_s, **view):
    """Sessions it lets in, of pending turns (session, arrival, prompt tokens, turn)."""
    chosen = mars.admit([build.session(session=n, arrival_s=a, prompt_tokens=p, turn_index=t)
                         for n, a, p, t in pending], build.system(**view), now_s)  # fmt: skip
    return [session.session for session in chosen]
