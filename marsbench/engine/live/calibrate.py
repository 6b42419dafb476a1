"""Measures how long a running engine's steps take, through its HTTP API alone.

Prefills run one at a time: prompts of many sizes, alone and behind a cached context; their time is
the server's own from first schedule to first token, or the client's where the server tells none.
Decodes run as batches of equal contexts: the server's own time from first to last token (the median
sequence's, so that of the few steps in which not all decode little is left), or the client's times
between tokens while all decode. What the client waits for a first token beyond the server's own time
is the way there and back. All probes are run, then all again with fresh content, so that a
machine whose speed drifts does not make single probes slow; a probe's times are summed.
"""

from __future__ import annotations

import asyncio
import dataclasses
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from marsbench.core import PS_PER_S
from marsbench.engine.base import EngineConfig, Request
from marsbench.engine.fit import Counts, Sample
from marsbench.engine.live.client import Client, Completion
from marsbench.engine.live.prompts import Prompts, Vocabulary
from marsbench.engine.live.request import CompletionRequest
from marsbench.errors import EngineError

DECODE_TOKENS = 64
"""Output of a decode probe, without what is added for each sequence."""
STAGGER_TOKENS = 4
"""Added for each sequence of a batch: requests begin one after the other (each is parsed, hashed and
prefilled), and steps that begin others must stay a small part of what is measured."""
MOST_DECODE_TOKENS = 512
LEAST_MESSAGES = 8
"""Fewest arrivals of tokens that a decode time is taken from."""
MOST_DOUBLINGS = 3
"""Of a decode probe's output, until there are so many."""
KV_SHARE = 0.9
"""Most of the KV cache that a probe fills."""


@dataclass(frozen=True, slots=True)
class Plan:
    """The probes that a calibration sends, and how often each of them."""

    prefills: tuple[tuple[int, int], ...]
    """(context, new tokens) of each prefill probe; contexts are cached first."""
    decodes: tuple[tuple[int, int], ...]
    """(batch, context) of each decode probe."""
    repeats: int = 3


def plan(config: EngineConfig, *, most_tokens: int = 16_384, repeats: int = 3) -> Plan:
    """Return the probes that fit an engine: sizes grow by powers up to its KV cache and model
    length.
    """
    kv_tokens = int(KV_SHARE * config.num_blocks * config.block_size)
    most = min(most_tokens, config.max_model_len - _output_tokens(1), kv_tokens)
    if most < 16 * config.block_size:
        raise EngineError(
            f"calibration: prompts can have {most} tokens at most, which is less than 16 blocks of "
            f"{config.block_size}; start the server with more KV blocks or a longer model length"
        )
    sizes = [size for size in (16, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384) if size < most]
    prefills = [(0, size) for size in [*sizes, most]]
    prefills += [
        (context, new)
        for context in (most // 4, most // 2, most * 3 // 4)
        for new in (config.block_size, min(1024, config.max_num_batched_tokens))
        if context + new <= most
    ]
    longest = _output_tokens(1)
    decodes = [
        (batch, context)
        for batch in (1, 2, 4, 8, 16, 32, 64, 128, 256)
        if batch <= config.max_num_seqs
        for context in dict.fromkeys((128, 1024, most // 4, most // 2, most - longest))
        if batch * (context + _output_tokens(batch) + config.block_size) <= kv_tokens
        and context + _output_tokens(batch) <= config.max_model_len
    ]
    return Plan(tuple(prefills), tuple(decodes), repeats)


def _output_tokens(batch: int) -> int:
    """Return how many tokens to ask for, so that nearly all of them are decoded in the full batch."""
    return min(DECODE_TOKENS + STAGGER_TOKENS * batch, MOST_DECODE_TOKENS)


def steps_of_prefill(context: int, new: int, chunk: int) -> tuple[Counts, ...]:
    """Return the counts of each step that computes ``new`` tokens behind a context of ``context``
    tokens, with nothing else in the engine.
    """
    steps: list[Counts] = []
    start, end = context, context + new
    while start < end:
        tokens = min(chunk, end - start)
        steps.append((tokens, tokens * start + tokens * (tokens + 1) // 2, start + tokens, 1))
        start += tokens
    return tuple(steps)


async def measure(
    client: Client,
    config: EngineConfig,
    probes: Plan,
    *,
    salt: str,
    vocabulary: Vocabulary | None = None,
    progress: Callable[[str], None] = lambda _text: None,
) -> list[Sample]:
    """Run the probes, one after the other; the server must have nothing else to do."""
    prober = _Prober(client, config, Prompts(vocabulary, salt=f"calibrate/{salt}"))
    await prober.prefill(0, min(512, config.max_model_len // 2))  # the first one is slow
    found: dict[tuple[str, int, int], list[Sample]] = {}
    for repeat in range(probes.repeats):
        progress(f"round {repeat + 1} of {probes.repeats}")
        for context, new in probes.prefills:
            progress(f"prefill of {new} tokens behind {context}")
            sample = await prober.prefill(context, new)
            found.setdefault(("prefill", context, new), []).append(sample)
        for batch, context in probes.decodes:
            progress(f"decode of {batch} sequences at {context}")
            sample = await prober.decode(batch, context)
            found.setdefault(("decode", batch, context), []).append(sample)
    return [_joined(samples) for samples in found.values()]


def _joined(samples: Sequence[Sample]) -> Sample:
    """Join the repetitions of a probe into one sample: all their steps, in all the time they took."""
    return Sample(
        samples[0].kind,
        tuple(step for sample in samples for step in sample.steps),
        sum(sample.seconds for sample in samples),
        sum(sample.first_tokens for sample in samples),
        tuple(around for sample in samples for around in sample.around),
    )


def _told(found: Sequence[Completion], context: int) -> Sample | None:
    """Return the steps of all outputs by the server's own times, or None if it tells no times."""
    seconds = [done.decode_s for done in found if done.decode_s]
    if len(seconds) < len(found):
        return None
    batch, count = len(found), found[0].output_tokens - 1
    sizes = [batch * (context + 1 + index) for index in range(count)]
    steps = tuple((batch, size, size, batch) for size in sizes)
    return Sample("decode", steps, statistics.median_low(seconds))


def _window(found: Sequence[Completion], context: int) -> Sample | None:
    """Return the steps between the start of the last sequence and the end of the first, or None if
    they are too few.
    """
    began_ps = max(done.first_ps for done in found)
    ended_ps = min(done.token_ps[-1] for done in found)
    last = max(found, key=lambda done: done.first_ps)
    times = [at for at in last.token_ps if began_ps < at <= ended_ps]
    if len(set(times)) < LEAST_MESSAGES:
        return None
    batch = len(found)
    start = batch * context + sum(sum(at <= began_ps for at in done.token_ps) for done in found)
    steps = tuple(
        (batch, start + batch * index, start + batch * index, batch) for index in range(len(times))
    )
    return Sample("decode", steps, (times[-1] - began_ps) / PS_PER_S)


class _Prober:
    def __init__(self, client: Client, config: EngineConfig, prompts: Prompts) -> None:
        self._client = client
        self._config = config
        self._prompts = prompts
        self._session = 0

    async def prefill(self, context: int, new: int) -> Sample:
        """Measure one prefill with nothing else in the engine."""
        prompt = self._fresh(context + new)
        if context:
            await self._ask(prompt[:context], 1)
        asked_ps = self._client.clock.now_ps()
        done = await self._ask(prompt, 1)
        cached = done.cached_tokens or 0
        steps = steps_of_prefill(cached, len(prompt) - cached, self._config.max_num_batched_tokens)
        seconds = done.prefill_s
        if seconds is None:
            seconds = (done.first_ps - done.sent_ps) / PS_PER_S
        around_s = (done.first_ps - asked_ps) / PS_PER_S - seconds
        return Sample("prefill", steps, seconds, 1, ((len(prompt), around_s),))

    async def decode(self, batch: int, context: int) -> Sample:
        """Measure steps in which ``batch`` sequences of at least ``context`` tokens decode
        together.

        A busy server or client joins the tokens of several steps into one message; where the server
        tells no times and too few messages are left to take them from, longer outputs are tried.
        """
        prompts = [self._fresh(context) for _ in range(batch)]
        await asyncio.gather(*(self._ask(prompt, 1) for prompt in prompts))
        most = min(
            self._config.max_model_len - context,
            self._config.num_blocks * self._config.block_size // batch - context,
        )
        for doubling in range(MOST_DOUBLINGS + 1):
            output = min(most, _output_tokens(batch) << doubling)
            found = await asyncio.gather(*(self._ask(prompt, output) for prompt in prompts))
            sample = _told(found, context) or _window(found, context)
            if sample is not None:
                return sample
        raise EngineError(
            f"calibration: of {batch} sequences of {context} tokens, {output} tokens each came in "
            f"fewer than {LEAST_MESSAGES} messages while all decoded; is the machine busy?"
        )

    def _fresh(self, tokens: int) -> list[int]:
        request = Request(
            session=self._session,
            turn_index=0,
            prompt_tokens=tokens,
            reused_tokens=0,
            output_tokens=0,
            prefix_id=-1,
            prefix_tokens=0,
            session_arrival_ps=0,
            ready_ps=0,
            priority=0,
            is_last=True,
            tool_names=(),
        )
        prompt: list[int] = self._prompts.compose(request).tolist()
        self._prompts.forget(self._session)
        self._session += 1
        return prompt

    async def _ask(self, prompt: list[int], output: int) -> Completion:
        done = await self._client.complete(CompletionRequest(prompt, output))
        if not done.ok or len(done.token_ps) != output:
            said = (
                done.problems[-1] if done.problems else f"{len(done.token_ps)} of {output} tokens"
            )
            raise EngineError(f"calibration: a prompt of {len(prompt)} tokens failed: {said}")
        return done


async def with_sizes_of(client: Client, config: EngineConfig) -> EngineConfig:
    """Return the flags with the number of KV blocks that the server reports, if it reports one."""
    told = await client.metrics()
    if told is None or not told.num_blocks:
        return config
    return dataclasses.replace(config, num_blocks=told.num_blocks, block_size=told.block_size)
