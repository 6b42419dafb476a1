"""An OpenAI-compatible completions server without a model: for tests, and to measure the client.

It streams invented tokens at set times, keeps an exact block-wise prefix cache (LRU), counts what
vLLM's ``/metrics`` counts under the same names, and can fail on purpose. Run it with
``python -m marsbench.engine.live.fake_server --port 8000``.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from marsbench.core import to_s
from marsbench.engine.cost import StepCost

FAULTS = ("429", "500", "silent", "disconnect", "refuse-stream")

CHUNK = "text_completion"
"""What an object of the stream is, in the completions protocol."""


@dataclass(slots=True)
class Behaviour:
    """How a fake server behaves: its sizes, its speed and its faults."""

    ttft_s: float = 0.0
    prefill_s_per_token: float = 0.0
    """Added to ``ttft_s`` for each prompt token that is not cached."""
    itl_s: float = 0.0
    cost: StepCost | None = None
    """How long prefill chunks and decode steps take, in place of the two above."""
    max_num_batched_tokens: int = 2048
    num_blocks: int = 4096
    block_size: int = 16
    max_model_len: int = 131_072
    vocabulary: int = 1024
    max_num_seqs: int = 256
    faults: dict[int, str] = field(default_factory=dict)
    """Number of a request (from 0, in order of arrival) -> one of FAULTS. "silent" answers never,
    "disconnect" breaks the stream after half the tokens, "refuse-stream" before the first."""
    fault_every: int = 0
    """Each n-th request meets ``fault``; 0 = none."""
    fault: str = "500"


class FakeServer:
    """A server that answers as vLLM does, with invented tokens after modelled times."""

    def __init__(self, behaviour: Behaviour | None = None, *, model: str = "fake") -> None:
        self.behaviour = behaviour or Behaviour()
        self.model = model
        self.requests: list[dict[str, Any]] = []
        """Bodies in order of arrival."""
        self.totals = dict.fromkeys(
            ("queries", "hits", "prompt", "generation", "steps", "success"), 0
        )
        self._running = 0
        self._waiting = 0
        self._decoding: dict[int, int] = {}
        """Context of each turn that decodes."""
        self._slots = asyncio.Semaphore(self.behaviour.max_num_seqs)
        self._cache: OrderedDict[int, None] = OrderedDict()
        self._numbers = itertools.count()

    def app(self) -> web.Application:
        """Return the web application with all routes."""
        app = web.Application(client_max_size=1 << 28)
        app.router.add_get("/health", self._health)
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/metrics", self._metrics)
        app.router.add_post("/v1/completions", self._completions)
        return app

    async def _health(self, _request: web.Request) -> web.Response:
        return web.Response()

    async def _models(self, _request: web.Request) -> web.Response:
        entry = {"id": self.model, "max_model_len": self.behaviour.max_model_len}
        return web.json_response({"object": "list", "data": [entry]})

    async def _metrics(self, _request: web.Request) -> web.Response:
        behaviour, totals = self.behaviour, self.totals
        label = f'{{engine="0",model_name="{self.model}"}}'
        values = {
            "num_requests_running": self._running,
            "num_requests_waiting": self._waiting,
            "kv_cache_usage_perc": 0.0,
            "prefix_cache_queries_total": totals["queries"],
            "prefix_cache_hits_total": totals["hits"],
            "num_preemptions_total": 0,
            "prompt_tokens_total": totals["prompt"],
            "generation_tokens_total": totals["generation"],
            "iteration_tokens_total_count": totals["steps"],
        }
        lines = [f"vllm:{name}{label} {float(value)}" for name, value in values.items()]
        config = f'block_size="{behaviour.block_size}",num_gpu_blocks="{behaviour.num_blocks + 1}"'
        lines.append(f'vllm:cache_config_info{{engine="0",{config}}} 1.0')
        return web.Response(text="\n".join([*lines, ""]))

    async def _completions(self, request: web.Request) -> web.StreamResponse:
        body: dict[str, Any] = json.loads(await request.read())
        number = next(self._numbers)
        self.requests.append(body)
        fault = self._fault(number)
        if fault == "429":
            return _error(429, "too many requests", {"Retry-After": "0"})
        if fault == "500":
            return _error(500, "made to fail")
        if fault == "silent":
            await asyncio.sleep(3600)
        prompt = body.get("prompt")
        if isinstance(prompt, str):
            prompt = list(prompt.encode())  # the fake's tokenizer: a token a byte
        if not isinstance(prompt, list) or not all(isinstance(i, int) for i in prompt):
            return _error(400, "prompt must be a text or a list of token ids here")
        if len(prompt) + int(body["max_tokens"]) > self.behaviour.max_model_len:
            return _error(400, f"maximum context length is {self.behaviour.max_model_len} tokens")
        return await self._stream(request, body, prompt, fault)

    def _fault(self, number: int) -> str:
        every = self.behaviour.fault_every
        if every and number % every == every - 1:
            return self.behaviour.fault
        return self.behaviour.faults.get(number, "")

    async def _stream(
        self, request: web.Request, body: dict[str, Any], prompt: list[int], fault: str
    ) -> web.StreamResponse:
        reply = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await reply.prepare(request)
        loop = asyncio.get_running_loop()
        arrived_s = loop.time()
        self._waiting += 1
        async with self._slots:
            self._waiting -= 1
            self._running += 1
            scheduled_s = loop.time()
            try:
                cached = self._lookup(prompt)
                wait_s = self.behaviour.ttft_s
                wait_s += self._prefill_s(len(prompt), cached)
                await asyncio.sleep(wait_s)
                if fault == "refuse-stream":
                    _break(request)
                    return reply
                first_s = loop.time()
                output = self._output(prompt, int(body["max_tokens"]))
                await self._tokens(request, reply, body, prompt, output, fault)
                last_s = loop.time()
            finally:
                self._running -= 1
                self._decoding.pop(id(body), None)
        if fault != "disconnect":
            self._insert([*prompt, *output[:-1]])
            usage = {
                "prompt_tokens": len(prompt),
                "completion_tokens": len(output),
                "prompt_tokens_details": {"cached_tokens": cached},
            }
            metrics = {
                "queue_time_ms": (scheduled_s - arrived_s) * 1e3,
                "time_to_first_token_ms": (first_s - scheduled_s) * 1e3,
                "generation_time_ms": (last_s - first_s) * 1e3,
            }
            chunk = {"object": CHUNK, "choices": [], "usage": usage, "metrics": metrics}
            await _send(reply, chunk)
            await reply.write(b"data: [DONE]\n\n")
            self.totals["success"] += 1
        return reply

    async def _tokens(
        self,
        request: web.Request,
        reply: web.StreamResponse,
        body: dict[str, Any],
        prompt: list[int],
        output: list[int],
        fault: str,
    ) -> None:
        loop = asyncio.get_running_loop()
        due_s = loop.time()
        for index, token in enumerate(output):
            if fault == "disconnect" and index >= (len(output) + 1) // 2:
                _break(request)
                return
            choice: dict[str, Any] = {"index": 0, "text": "x"}
            if body.get("return_token_ids"):
                choice["token_ids"] = [token]
                if not index:
                    choice["prompt_token_ids"] = prompt
            await _send(reply, {"object": CHUNK, "choices": [choice]})
            self.totals["generation"] += 1
            self.totals["steps"] += 1
            self._decoding[id(body)] = len(prompt) + index + 1
            if index + 1 < len(output) and (itl_s := self._decode_s()):
                due_s += itl_s
                await asyncio.sleep(max(0.0, due_s - loop.time()))

    def _prefill_s(self, prompt_tokens: int, cached: int) -> float:
        """Return the seconds from the first schedule of a prompt to its first token."""
        cost, chunk = self.behaviour.cost, self.behaviour.max_num_batched_tokens
        if cost is None:
            return self.behaviour.prefill_s_per_token * (prompt_tokens - cached)
        total_ps = 0
        for start in range(cached, prompt_tokens, chunk):
            new = min(chunk, prompt_tokens - start)
            total_ps += cost.step_ps(new, new * start + new * (new + 1) // 2, start + new, 1)
        return to_s(total_ps)

    def _decode_s(self) -> float:
        """Return the seconds of a step in which all running sequences decode."""
        cost, contexts = self.behaviour.cost, self._decoding.values()
        if cost is None:
            return self.behaviour.itl_s
        return to_s(cost.step_ps(len(contexts), sum(contexts), sum(contexts), len(contexts)))

    def _output(self, prompt: list[int], count: int) -> list[int]:
        """Return invented tokens, always the same ones for the same prompt."""
        seed = hash((len(prompt), *prompt[-8:]))
        size = self.behaviour.vocabulary
        return [(seed + 7919 * index) % size for index in range(count)]

    def _lookup(self, prompt: list[int]) -> int:
        """Return the number of cached leading tokens in whole blocks. The last token is always
        computed, as in vLLM.
        """
        cached = 0
        size = self.behaviour.block_size
        for key in self._keys(prompt):
            if key not in self._cache or cached + size >= len(prompt):
                break
            self._cache.move_to_end(key)
            cached += size
        self.totals["queries"] += len(prompt)
        self.totals["hits"] += cached
        self.totals["prompt"] += len(prompt)
        return cached

    def _insert(self, tokens: list[int]) -> None:
        for key in self._keys(tokens):
            self._cache[key] = None
            self._cache.move_to_end(key)
        while len(self._cache) > self.behaviour.num_blocks:
            self._cache.popitem(last=False)

    def _keys(self, tokens: list[int]) -> list[int]:
        """Return a hash for each full block that stands for it and all blocks before it."""
        size = self.behaviour.block_size
        keys: list[int] = []
        parent = 0
        for start in range(0, len(tokens) // size * size, size):
            parent = hash((parent, *tokens[start : start + size]))
            keys.append(parent)
        return keys


async def _send(reply: web.StreamResponse, chunk: dict[str, Any]) -> None:
    await reply.write(b"data: " + json.dumps(chunk).encode() + b"\n\n")


def _break(request: web.Request) -> None:
    """Cut the connection without the regular end of the stream."""
    if request.transport is not None:
        request.transport.abort()


def _error(status: int, message: str, headers: dict[str, str] | None = None) -> web.Response:
    return web.json_response(
        {"error": {"message": message, "code": status}}, status=status, headers=headers
    )


@asynccontextmanager
async def serving(server: FakeServer, *, port: int = 0) -> AsyncIterator[str]:
    """Run a fake server in this event loop and give its address."""
    runner = web.AppRunner(server.app(), access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", port)
        await site.start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


def _options() -> argparse.Namespace:
    known = Behaviour()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--model", default="fake")
    parser.add_argument("--ttft-ms", type=float, default=5.0)
    parser.add_argument("--itl-ms", type=float, default=0.5)
    parser.add_argument("--prefill-us-per-token", type=float, default=0.0)
    parser.add_argument("--num-blocks", type=int, default=known.num_blocks)
    parser.add_argument("--block-size", type=int, default=known.block_size)
    parser.add_argument("--max-model-len", type=int, default=known.max_model_len)
    parser.add_argument("--max-num-seqs", type=int, default=known.max_num_seqs)
    parser.add_argument("--fault-every", type=int, default=0, help="every n-th request fails")
    parser.add_argument("--fault", choices=FAULTS, default="500", help="how it fails")
    return parser.parse_args()


async def _main(options: argparse.Namespace) -> None:
    behaviour = Behaviour(
        ttft_s=options.ttft_ms / 1e3,
        itl_s=options.itl_ms / 1e3,
        prefill_s_per_token=options.prefill_us_per_token / 1e6,
        num_blocks=options.num_blocks,
        block_size=options.block_size,
        max_model_len=options.max_model_len,
        max_num_seqs=options.max_num_seqs,
        fault_every=options.fault_every,
        fault=options.fault,
    )
    async with serving(FakeServer(behaviour, model=options.model), port=options.port) as url:
        print(f"serving {options.model} at {url}", flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_main(_options()))
