"""The scheduler of a live server with policies inside, without the server: no model, no sockets but
its own, steps by hand."""

from __future__ import annotations

import json
from array import array
from collections import Counter
from importlib.util import find_spec
from types import SimpleNamespace

import pytest

from marsbench.engine.base import EngineConfig
from marsbench.events import Kind

pytestmark = [
    pytest.mark.sglang,
    pytest.mark.skipif(find_spec("sglang") is None, reason="SGLang is not installed"),
]
CONFIG = EngineConfig(
    num_blocks=5120, block_size=1, max_model_len=4096, max_num_batched_tokens=2048, max_num_seqs=8
)
MS = 1_000_000_000


class Served:
    """A served scheduler and who would drive it."""

    def __init__(self, told):
        from marsbench.engine.sglang.runtime import build, quietly

        with quietly():
            from marsbench.engine.sglang import scheduler as embedded
            from marsbench.engine.sglang.served import ServedSglangScheduler

        stock = embedded.EmbeddedScheduler
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("MARSBENCH_SGLANG", json.dumps(told))
            client = type("Client", (stock,), {"send_abort_output": self.abort})
            inside = type("Inside", (ServedSglangScheduler, client), {})
            patch.setattr(embedded, "EmbeddedScheduler", inside)
            self.runtime = build(CONFIG)
        self.scheduler = self.runtime.scheduler
        self.scheduler.drive_by(self)
        self.heard = []
        self.scheduler.hosted.listeners.append(self.heard.append)
        self.cached = {}
        self.told_aborts = []
        self.made = 0

    def abort(self, abort_req, req):
        """What the client is told."""
        self.told_aborts.append(req.rid)

    def next_token(self, request):
        return 7

    def requeued(self, request):
        pass

    def evicted(self, num_tokens):
        pass

    def send(self, session, tokens, output, *, turn=0, last=False):
        """A turn of so many tokens, of which those of the turns before begin it."""
        from sglang.srt.managers.io_struct import TokenizedGenerateReqInput
        from sglang.srt.sampling.sampling_params import SamplingParams

        hints = {"marsbench_turn": turn, "marsbench_tools": ["bash"], "marsbench_last": int(last)}
        sampling = SamplingParams(max_new_tokens=output, ignore_eos=True, custom_params=hints)
        sampling.normalize(None)
        self.made += 1
        rid = f"{self.made:04d}"
        with self.runtime.active():
            self.scheduler.handle_generate_request(
                TokenizedGenerateReqInput(
                    rid=rid, input_text=None, input_ids=array("q", tokens), input_embeds=None, mm_inputs=None,
                    token_type_ids=None, sampling_params=sampling, return_logprob=False,
                    logprob_start_len=-1, top_logprobs_num=0, token_ids_logprob=None, stream=False,
                    session_id=str(session),
                )
            )  # fmt: skip
        return rid

    def step(self):
        """One round of SGLang's loop; whether anything ran."""
        from marsbench.engine.sglang.clock import CLOCK

        CLOCK.now_ps += MS
        scheduler = self.scheduler
        with self.runtime.active():
            plan = scheduler.get_next_batch_to_run(
                running_batch=scheduler.running_batch, last_batch=scheduler.last_batch
            )
            scheduler.running_batch = plan.running_batch
            batch = scheduler.last_batch = plan.batch_to_run
            if batch is not None:
                for request in batch.reqs:
                    self.cached.setdefault(request.rid, request.prefix_len)
                scheduler.process_batch_result(batch, scheduler.run_batch(batch))
            return batch is not None

    def drain(self):
        """Until nothing runs: then SGLang looks for tokens that are nobody's, and ends if there are."""
        while self.step():
            pass
        with self.runtime.active():
            self.scheduler.on_idle()


@pytest.fixture(scope="module")
def served():
    told = {"system": "mars", "profile": "tiny-cpu", "params": {"fixed_ttl_s": 600}}
    return Served(told)


def tokens(session, length):
    return [session * 10_000 + k for k in range(length)]


def test_what_mars_keeps_outlasts_a_flood(served):
    """Two agents' contexts stay while others use the rest of the memory twice over, and are found
    again; with their last turns nothing is held any more."""
    for session in (1, 2):
        served.send(session, tokens(session, 1100), 8)
    served.drain()
    assert served.scheduler.hooks.view.pinned_blocks == 2 * 1107
    for session in (3, 4):
        served.send(session, tokens(session, 2700), 8, last=True)
        served.drain()
    back = [
        served.send(s, [*tokens(s, 1100), *[7] * 8, *tokens(s + 50, 100)], 8, turn=1, last=True)
        for s in (1, 2)
    ]
    served.drain()
    assert [served.cached[rid] for rid in back] == [1107, 1107]
    assert served.scheduler.hooks.view.pinned_blocks == 0
    assert served.scheduler.tree_cache.protected_size() == 0
    kinds = Counter(event.kind for event in served.heard)
    assert kinds[Kind.GPU_SCHED_FIRST] == kinds[Kind.GPU_FIRST_TOKEN] == kinds[Kind.GPU_END] == 6
    assert kinds[Kind.KV_PIN] == kinds[Kind.KV_UNPIN] == 2
    assert kinds[Kind.SESSION_END] == 4


def test_broken_off_turns_leave_nothing(served):
    """One runs and one waits when their clients go."""
    from sglang.srt.managers.io_struct import AbortReq

    scheduler = served.scheduler
    running = served.send(11, tokens(11, 2500), 900)
    served.step()
    waiting = served.send(12, tokens(12, 3000), 900)
    served.step()
    assert len(scheduler.hooks.turns) == 2
    with served.runtime.active():
        for rid in (running, waiting):
            scheduler.abort_request(AbortReq(rid=rid))
    served.drain()
    assert not len(scheduler.hooks.turns)
    assert not scheduler.hooks.running
    assert not scheduler.hosted.cached
    assert not scheduler.hosted.tokenless
    assert scheduler.hooks.view.pinned_blocks == 0
    assert waiting in served.told_aborts


def test_an_emptied_cache_holds_no_pin(served):
    """Flushing the cache gives up its pins, and the next turn computes all again."""
    served.send(21, tokens(21, 500), 4)
    served.drain()
    assert served.scheduler.hooks.view.pinned_blocks == 503
    with served.runtime.active():
        assert served.scheduler.flush_cache()
    assert served.scheduler.hooks.view.pinned_blocks == 0
    again = served.send(21, [*tokens(21, 500), *[7] * 4, 1], 2, turn=1, last=True)
    served.drain()
    assert served.cached[again] == 0


def test_a_new_run_begins_anew(served):
    """The control plane of another run: fresh policies, hooked in once, and sessions from 0 on."""
    scheduler = served.scheduler
    before = scheduler.hooks
    with served.runtime.active():
        scheduler.hosted._restarted()
    assert scheduler.hooks is not before
    served.heard.clear()
    scheduler.hosted.listeners.append(served.heard.append)
    served.send("new", tokens(31, 100), 4, last=True)
    served.drain()
    assert [event.session for event in served.heard if event.kind == Kind.GPU_END] == [0]
    assert (before.ordered, scheduler.hooks.ordered > 0) == (before.ordered, True)


def test_a_release_that_does_not_ask_the_policies_ends(served, monkeypatch):
    """A request in a batch that the hooks were not asked about is an error, at once."""
    from marsbench.errors import EngineError

    hooks = SimpleNamespace(ordered=1, adders=1)
    monkeypatch.setattr(served.scheduler, "hooks", hooks)
    with pytest.raises(EngineError, match="without asking the policies"):
        served.scheduler._admitted(SimpleNamespace(rid="x"), (1, 0))
