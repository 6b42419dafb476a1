"""Each router's rule, by hand, on two or three replicas whose views are given."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from policy_views import Sess, context

from marsbench.errors import ConfigError
from marsbench.events import Event, Kind
from marsbench.routing import make_router, router_paths


@dataclass
class Replica:
    """A replica of 16,000 tokens; ``cached`` maps a session to its hit."""

    index: int = 0
    in_flight: int = 0
    sessions: int = 0
    prefill_tokens: int = 0
    context_tokens: int = 0
    block_size: int = 16
    num_blocks: int = 1000
    free_blocks: int = 1000
    num_waiting: int = 0
    cached: dict[int, int] = field(default_factory=dict)

    def cached_tokens(self, turn):
        return self.cached.get(turn.session, 0)


def three(**columns):
    """Three replicas, each with its value of every column."""
    return [
        Replica(index=k, **{name: values[k] for name, values in columns.items()}) for k in range(3)
    ]


def ended(session, now_s=0.0):
    return Event(now_s, Kind.SESSION_END, session, -1, -1, (0,))


def test_round_robin_takes_the_next():
    """0, 1, 2, 0, and with two left the count goes on: 4 modulo 2."""
    router = make_router("round-robin", context())
    assert [router.route(Sess(), three(), 0.0) for _ in range(4)] == [0, 1, 2, 0]
    assert router.route(Sess(), three()[1:], 0.0) == 0


def test_least_loaded_counts_turns_in_flight():
    """Fewest turns, then fewest sessions; memory and affinity do not count."""
    router = make_router("least-loaded", context())
    assert router.route(Sess(), three(in_flight=(3, 1, 2)), 0.0) == 1
    assert router.route(Sess(), three(in_flight=(1, 1, 2), sessions=(5, 4, 0)), 0.0) == 1


def test_session_hash_moves_only_whom_it_must():
    """Equal for every turn; without one replica only its sessions move; spread is even."""
    router = make_router("session-hash", context())
    all_three = three()
    homes = [router.route(Sess(k), all_three, 0.0) for k in range(300)]
    assert homes == [router.route(Sess(k), all_three, 9.0) for k in range(300)]
    assert min(homes.count(k) for k in range(3)) > 70
    left = [0, 2]
    for k, home in enumerate(homes):
        now = left[router.route(Sess(k), [all_three[i] for i in left], 0.0)]
        assert home in {now, 1}


def test_session_affinity_stays_until_the_replica_is_gone():
    """First where fewest sessions are; there until it ends or the replica has died."""
    router = make_router("session-affinity", context())
    assert router.route(Sess(7), three(sessions=(2, 1, 3)), 0.0) == 1
    busy = three(sessions=(0, 9, 0), in_flight=(0, 9, 0))
    assert router.route(Sess(7), busy, 1.0) == 1
    assert busy[router.route(Sess(7), busy[1:], 1.0) + 1].index == 1, "positions have moved"
    assert router.route(Sess(7), [busy[0], busy[2]], 2.0) == 0, "replica 1 has died"
    router.on_event(ended(7))
    assert router.route(Sess(7), three(sessions=(2, 2, 1)), 3.0) == 2


def test_dynamo_adds_prefill_and_decode_blocks():
    """A prompt of 1,600 tokens: with 960 cached at the first replica prefill is 40 blocks there, 100
    elsewhere; it loses as soon as it has 60 blocks more to decode.
    """
    router = make_router("dynamo-kv", context())
    turn = Sess(prompt_tokens=1600)
    cached = ({0: 960}, {}, {})
    ahead = three(cached=cached, context_tokens=(59 * 16, 0, 16))
    behind = three(cached=cached, context_tokens=(61 * 16, 0, 16))
    assert router.route(turn, ahead, 0.0) == 0
    assert router.route(turn, behind, 0.0) == 1
    queued = three(cached=cached, prefill_tokens=(61 * 16, 0, 16))
    assert router.route(turn, queued, 0.0) == 1
    heavy = make_router("dynamo-kv", context(params={"overlap_score_weight": 2.0}))
    assert heavy.route(turn, behind, 0.0) == 0


def test_llm_d_weighs_queue_memory_and_prefix():
    """Scores 2 x queue + 2 x free + 3 x prefix: (0, 1, 0.9) = 4.7 against (1, 1, 0) = 4 and
    (0.5, 1, 0) = 3; with half the memory and 0.6 of the prompt the first has 2.8.
    """
    router = make_router("llm-d", context())
    turn = Sess(prompt_tokens=1000)
    queues = {"num_waiting": (4, 0, 2)}
    assert router.route(turn, three(cached=({0: 900}, {}, {}), **queues), 0.0) == 0
    poor = three(cached=({0: 600}, {}, {}), free_blocks=(500, 1000, 1000), **queues)
    assert router.route(turn, poor, 0.0) == 1


def test_lmetric_multiplies_new_tokens_and_batch():
    """1,000 tokens of which 800 are cached at the first: 200 x (4 + 1) = 1000 x (0 + 1) is a tie that
    the first wins; one more turn there, or 1 token more in its queue, and the second has it.
    """
    router = make_router("lmetric", context())
    turn = Sess(prompt_tokens=1000)
    cached = ({0: 800}, {}, {})
    idle = {"in_flight": (4, 0, 0)}
    assert router.route(turn, three(cached=cached, **idle), 0.0) == 0
    assert router.route(turn, three(cached=cached, in_flight=(5, 0, 0)), 0.0) == 1
    assert router.route(turn, three(cached=cached, prefill_tokens=(1, 0, 0), **idle), 0.0) == 1


def test_progress_ttl_binds_while_there_is_progress():
    """Back after 10 s it is where it was; after 10.1 s it is PAUSED and goes where fewest are ACTIVE."""
    router = make_router("progress-ttl", context())
    replicas = three()
    assert [router.route(Sess(k), replicas, 0.0) for k in range(4)] == [0, 1, 2, 0]
    router.on_event(Event(5.0, Kind.GPU_END, 3, 0, -1, (10, 0, 0, 0, 1, 0)))
    assert router.route(Sess(3), replicas, 15.0) == 0
    router.on_event(Event(16.0, Kind.GPU_END, 3, 1, -1, (10, 0, 0, 0, 1, 0)))
    router.on_event(ended(1, 17.0))
    assert router.route(Sess(3), replicas, 26.1) == 1, "session 1 has ended: nobody is there"


def test_most_room_places_whoever_waited_anew():
    """Room is 16,000 tokens less contexts and 100 each. A turn that waited at the gate goes where most
    room is, one that did not stays.
    """
    router = make_router("most-room", context())
    replicas = three()
    assert router.route(Sess(0, prompt_tokens=9000), replicas, 0.0) == 0
    assert router.route(Sess(1, prompt_tokens=2000), replicas, 0.0) == 1
    assert router.route(Sess(2, prompt_tokens=1000), replicas, 0.0) == 2
    router.on_event(Event(5.0, Kind.TURN_READY, 1, 1, -1, (3000,)))
    assert router.route(Sess(1, prompt_tokens=3000), replicas, 5.0) == 1
    router.on_event(Event(8.0, Kind.TURN_READY, 1, 2, -1, (4000,)))
    assert router.route(Sess(1, prompt_tokens=4000), replicas, 9.0) == 1, "its own KV left room"
    router.on_event(Event(9.0, Kind.TURN_READY, 0, 1, -1, (9500,)))
    assert router.route(Sess(0, prompt_tokens=9500), replicas, 9.5) == 0
    router.on_event(ended(2))
    router.on_event(Event(10.0, Kind.TURN_READY, 1, 3, -1, (17000,)))
    assert router.route(Sess(1, prompt_tokens=17000), replicas, 11.0) == 1
    assert router.route(Sess(3, prompt_tokens=100), replicas, 12.0) == 2


def test_unknown_routers_are_one_line():
    """With the closest name."""
    with pytest.raises(ConfigError, match=r"unknown router 'lmetrik'; did you mean 'lmetric'\?"):
        make_router("lmetrik", context())
    assert {"round-robin", "lmetric"} <= set(router_paths())
