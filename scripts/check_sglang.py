"""Says whether the installed SGLang is one that marsbench works on: scripts/check_sglang.py [N].

To be run with every release, in the environment that has SGLang, whatever version it is. Looks for
each name that the embedded scheduler, the hooks and the plug-in go around, and for what a real
request carries; then plays N random cells (default 12) three times: SGLang alone, with hooks that
change nothing, and with random policies, which must keep the books after every step and repeat. The
totals stand in one line, to be held against those of another release. Names what moved and exits
with status 1 if anything did.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import inspect
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from marsbench.core import to_ps
from marsbench.engine.adversary import Case, make_case
from marsbench.engine.cost import StepCost
from marsbench.engine.interpreters import available, find_python
from marsbench.engine.parity import first_difference, run, summary
from marsbench.engine.sglang.flags import SUPPORTED, SUPPORTED_TEXT
from marsbench.engine.sim_sglang.core import RadixCore
from marsbench.errors import MarsbenchError
from marsbench.system import Policies

UNTIL_PS = to_ps(0.6)
COST = StepCost.from_coefficients(
    c_tok=3_000_000, c_pair=400, weights=[8_000_000_000], m_ctx=30_000, o_step=2_000_000_000,
    o_seq=10_000_000,
)  # fmt: skip
NEUTRAL = {
    "long_prefill_token_threshold": 0,
    "long_prefill_token_threshold_adaptive": False,
    "scheduler_reserve_full_isl": True,
    "enable_prefix_caching": True,
    "policy": "fcfs",
}
"""Flags of vLLM's that SGLang has nothing for."""


class HookedName(NamedTuple):
    """Something of SGLang's that marsbench goes around, overrides or reads."""

    owner: str
    name: str
    takes: tuple[str, ...] = ()
    """Parameters that it must have, if it is called or overridden with them."""


SRT = "sglang.srt"
SCHEDULER = f"{SRT}.managers.scheduler.Scheduler"
ADDER = f"{SRT}.managers.schedule_policy.PrefillAdder"
BATCH = f"{SRT}.managers.schedule_batch.ScheduleBatch"
TREE = f"{SRT}.mem_cache.unified_radix_cache.UnifiedRadixCache"
PLACES = (
    HookedName(SCHEDULER, "__init__", ("server_args", "port_args")),
    HookedName(SCHEDULER, "get_next_batch_to_run", ("running_batch", "last_batch")),
    HookedName(SCHEDULER, "process_batch_result", ("batch", "result")),
    HookedName(SCHEDULER, "get_prefill_adder_class"),
    HookedName(SCHEDULER, "get_output_streamer_class"),
    HookedName(SCHEDULER, "_add_request_to_queue", ("req", "is_retracted")),
    HookedName(SCHEDULER, "send_abort_output", ("abort_req", "req")),
    HookedName(SCHEDULER, "init_ipc_channels", ("port_args",)),
    HookedName(SCHEDULER, "handle_generate_request", ("recv_req",)),
    HookedName(SCHEDULER, "ingest_requests"),
    HookedName(SCHEDULER, "run_event_loop"),
    HookedName(SCHEDULER, "on_idle"),
    HookedName(SCHEDULER, "is_fully_idle", ("ignore_waiting",)),
    HookedName(SCHEDULER, "flush_cache"),
    HookedName(f"{SRT}.managers.schedule_policy.SchedulePolicy", "calc_priority"),
    HookedName(
        f"{SRT}.managers.schedule_policy.SchedulePolicy",
        "waiting_queue_prefix_matched",
    ),
    HookedName(ADDER, "add_chunked_req", ("req",)),
    HookedName(ADDER, "add_one_req", ("req", "has_chunked_req", "truncation_align_size")),
    HookedName(ADDER, "budget_state"),
    HookedName(ADDER, "ceil_paged_tokens"),
    HookedName(ADDER, "rem_total_tokens"),
    HookedName(f"{SRT}.managers.schedule_policy", "CLIP_MAX_NEW_TOKENS"),
    HookedName(f"{SRT}.managers.schedule_policy", "AddReqResult"),
    HookedName(BATCH, "_get_decode_retraction_order", ("reqs",)),
    HookedName(TREE, "evict_for_alloc", ("params",)),
    HookedName(TREE, "lock"),
    HookedName(TREE, "unlock"),
    HookedName(TREE, "match_prefix", ("params",)),
    HookedName(TREE, "path_device_indices"),
    HookedName(TREE, "evictable_size"),
    HookedName(TREE, "protected_size"),
    HookedName(TREE, "update_eviction_metrics"),
    HookedName(f"{SRT}.mem_cache.common", "match_kv_cache"),
    HookedName(f"{SRT}.plugins", "load_plugins"),
    HookedName(f"{SRT}.plugins.hook_registry.HookRegistry", "register", ("target", "hook")),
    HookedName(f"{SRT}.plugins.hook_registry.HookRegistry", "apply_hooks"),
    HookedName(f"{SRT}.runtime_context", "create_context"),
    HookedName(f"{SRT}.runtime_context", "use_context"),
    HookedName(f"{SRT}.runtime_context", "SpawnRanks"),
    HookedName(f"{SRT}.entrypoints.openai.protocol.CompletionRequest", "session_id"),
    HookedName(f"{SRT}.entrypoints.openai.protocol.CompletionRequest", "custom_params"),
    HookedName(f"{SRT}.entrypoints.openai.protocol.CompletionRequest", "priority"),
    HookedName(f"{SRT}.entrypoints.openai.protocol.CompletionRequest", "ignore_eos"),
    HookedName(f"{SRT}.entrypoints.openai.protocol.CompletionRequest", "return_token_ids"),
)


def moved(place: HookedName) -> str | None:
    """What is not where marsbench looks for it; None if it is."""
    try:
        owner = resolve(place.owner)
    except (ImportError, AttributeError) as error:
        return f"{place.owner}: not found ({error})"
    fields = getattr(owner, "model_fields", {})
    if not hasattr(owner, place.name) and place.name not in fields:
        return f"{place.owner}.{place.name}: not found"
    if not place.takes:
        return None
    parameters = inspect.signature(getattr(owner, place.name)).parameters.values()
    if any(each.kind is each.VAR_KEYWORD for each in parameters):
        return None
    names = {each.name for each in parameters}
    lost = [name for name in place.takes if name not in names]
    if lost:
        return f"{place.owner}.{place.name}: takes no {', '.join(lost)} any more"
    return None


def resolve(path: str) -> Any:
    """A module, or what is in one."""
    try:
        return importlib.import_module(path)
    except ModuleNotFoundError:
        module, _, name = path.rpartition(".")
        if not module.startswith("sglang"):
            raise
        return getattr(resolve(module), name)


def cell(seed: int) -> Case:
    """A case of the adversary with memory for its largest turn."""
    case = make_case(700 + seed, policies=True)
    page = case.config.block_size
    largest = max(p.prompt_tokens + p.output_tokens for s in case.sessions for p in s.turns)
    config = dataclasses.replace(
        case.config,
        **NEUTRAL,
        num_blocks=max(case.config.num_blocks, -(-(largest + 2 * page + 4) // page)),
        max_num_batched_tokens=max(case.config.max_num_batched_tokens, 2 * page),
        schedule_policy=("fcfs", "lpm", "hrrn", "shortest-prefill-first")[seed % 4],
    )
    return dataclasses.replace(case, config=config)


def differences(case: Case, totals: list[str]) -> Iterator[tuple[str, str | None]]:
    """(what was tried, what was wrong with it) of one cell; its totals are added to ``totals``."""
    from marsbench.engine.sglang.core import SglangCore

    class Checked(SglangCore):
        """Counts all tokens after each step."""

        def _run(self, batch: Any) -> bool:
            finished = super()._run(batch)
            self.check_books()
            return finished

    def play(core: Callable[..., Any], policies: Policies, **options: bool) -> Any:
        make = lambda listener: core(case.config, COST, policies, listener, **options)  # noqa: E731
        return run(make, case.sessions, until_ps=UNTIL_PS)

    stock = play(Checked, Policies())
    totals.append(str(summary(stock)))
    ours = play(RadixCore, Policies())
    yield "the simulator, step by step", first_difference(ours, stock, ("sim", "sglang-core"))
    hooked = play(SglangCore, Policies(), adapt_always=True)
    yield "hooks that change nothing", first_difference(hooked, stock, ("hooks", "sglang"))
    wild = play(Checked, case.policies())
    totals.append(str(summary(wild)))
    again = play(SglangCore, case.policies())
    yield "policies, twice", first_difference(again, wild, ("once", "again"))


def main(count: int) -> int:
    if not available("sglang"):
        try:
            python = str(find_python("sglang"))
        except MarsbenchError as error:
            print(error, file=sys.stderr)
            return 2
        os.execv(python, [python, *sys.argv])  # noqa: S606
    from marsbench.engine.sglang.runtime import installed_version, quietly

    version = installed_version()
    supported = "" if version in SUPPORTED else ", so not this one"
    print(f"sglang {version} (marsbench supports {SUPPORTED_TEXT}{supported})")
    os.environ["MARSBENCH_SGLANG_ANY"] = "1"
    with quietly():
        lost = [found for place in PLACES if (found := moved(place)) is not None]
    print(f"{'names':<28} {len(PLACES) - len(lost):>4} of {len(PLACES):>4} are where they were")
    for found in lost:
        print(f"  moved: {found}")
    return int(played(count) + len(lost) > 0)


def played(count: int) -> int:
    """How many of the tries went wrong."""
    start, totals = time.perf_counter(), list[str]()
    tried: dict[str, int] = {}
    wrong: dict[str, list[str]] = {}
    for seed in range(count):
        case = cell(seed)
        try:
            for what, found in differences(case, totals):
                tried[what] = tried.get(what, 0) + 1
                if found is not None:
                    wrong.setdefault(what, []).append(f"seed {seed}: {found}")
        except Exception as error:  # noqa: BLE001 - a release that moved raises anything: that is told
            last = error.__traceback__
            while last is not None and last.tb_next is not None:
                last = last.tb_next
            at = "" if last is None else f" in {last.tb_frame.f_code.co_qualname}"
            tried["runs to its end"] = tried.get("runs to its end", 0) + 1
            said = f"seed {seed}: {type(error).__name__}{at}: {error}"
            wrong.setdefault("runs to its end", []).append(" ".join(said.split()))
    for what, number in tried.items():
        bad = wrong.get(what, [])
        print(f"{what:<28} {number - len(bad):>4} of {number:>4} cells agree")
        if bad:
            print(f"  first: {bad[0]}")
    digest = hashlib.sha256("\n".join(totals).encode()).hexdigest()[:16]
    print(f"totals of {len(totals)} runs: {digest}; {time.perf_counter() - start:.0f} s")
    return sum(map(len, wrong.values()))


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 12))
