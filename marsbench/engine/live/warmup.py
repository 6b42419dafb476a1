"""The first turns of a server are slow (caches, compilation, connections): they are not measured."""

from __future__ import annotations

import asyncio

from marsbench.engine.base import EngineConfig, Request
from marsbench.engine.live.client import Client
from marsbench.engine.live.prompts import Prompts
from marsbench.engine.live.request import CompletionRequest
from marsbench.errors import EngineError

PROMPT_TOKENS = 512
OUTPUT_TOKENS = 16


async def warm_up(client: Client, config: EngineConfig, *, turns: int, salt: str) -> None:
    """Send one turn alone and then the others at once. EngineError names what the server said.

    Their content is nobody else's, so they cost later turns nothing but cache room.
    """
    prompts = Prompts(salt=f"warm-up/{salt}")
    prompt_tokens = max(1, min(PROMPT_TOKENS, config.max_model_len // 2 - OUTPUT_TOKENS))

    async def ask(number: int) -> None:
        turn = Request(
            session=number,
            turn_index=0,
            prompt_tokens=prompt_tokens,
            reused_tokens=0,
            output_tokens=OUTPUT_TOKENS,
            prefix_id=-1,
            prefix_tokens=0,
            session_arrival_ps=0,
            ready_ps=0,
            priority=0,
            is_last=True,
            tool_names=(),
        )
        sent = CompletionRequest(prompts.compose(turn).tolist(), OUTPUT_TOKENS)
        done = await client.complete(sent)
        if not done.ok or not done.output_tokens:
            said = done.problems[-1] if done.problems else "an answer without tokens"
            raise EngineError(
                f"{client.url} does not complete {prompt_tokens} token ids of model "
                f"{client.model!r}: {said}"
            )

    if turns:
        await ask(0)
        await asyncio.gather(*(ask(number) for number in range(1, turns)))
