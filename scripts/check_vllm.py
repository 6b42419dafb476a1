"""Says whether the installed vLLM and the simulator agree, case by case: scripts/check_vllm.py [N].

To be run after every change of the vLLM version, in the environment that has vLLM. Plays N random
cells (default 100) of four kinds on both engines, prints one line per kind and the first
difference of each, and exits with status 1 if there is any.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator

from marsbench.engine.adversary import UNTIL_PS, Case, make_case
from marsbench.engine.cost import StepCost
from marsbench.engine.parity import CoreFactory, first_difference, run, summary
from marsbench.engine.sim.core import SimCore
from marsbench.engine.vllm.core import VllmCore
from marsbench.engine.vllm.runtime import SUPPORTED_TEXT, require_vllm
from marsbench.errors import MarsbenchError
from marsbench.system import Policies

COST = StepCost.from_coefficients(
    c_tok=3_000_000, c_pair=400, weights=[8_000_000_000], m_ctx=30_000, o_step=2_000_000_000,
    o_seq=10_000_000,
)  # fmt: skip


def core(case: Case, engine: type, policies: Policies, *, adapt: bool = False) -> CoreFactory:
    options = {"adapt_always": True} if adapt else {}
    return lambda listener: engine(case.config, COST, policies, listener, **options)


def differences(case: Case) -> Iterator[str | None]:
    """The simulator step by step, the simulator jumping, and the adapter where it does nothing."""
    real = run(core(case, VllmCore, case.policies()), case.sessions, until_ps=UNTIL_PS)
    for traced, name in ((True, "sim"), (False, "sim, jumping")):
        make = core(case, SimCore, case.policies())
        log = run(make, case.sessions, traced=traced, until_ps=UNTIL_PS)
        found = first_difference(log, real, (name, "vllm-core"))
        if found is None and summary(log) != summary(real):
            found = f"totals differ: {summary(log)} and {summary(real)}"
        yield found
    if not (case.with_order or case.with_retention):
        adapted = core(case, VllmCore, case.policies(), adapt=True)
        log = run(adapted, case.sessions, until_ps=UNTIL_PS)
        yield first_difference(log, real, ("adapter", "vllm"))


def main(count: int) -> int:
    try:
        print(f"vllm {require_vllm()} (supported: {SUPPORTED_TEXT})")
    except MarsbenchError as error:
        print(error, file=sys.stderr)
        return 2
    cases = [make_case(seed, policies=seed % 2 == 1) for seed in range(count)]
    failed = 0
    start = time.perf_counter()
    for name in ("fcfs", "priority", "scheduling policy", "retention policy"):
        chosen = [case for case in cases if name in kinds(case)]
        wrong: list[tuple[Case, str]] = []
        for case in chosen:
            wrong += [(case, found) for found in differences(case) if found is not None][:1]
        print(f"{name:<20} {len(chosen) - len(wrong):>4} of {len(chosen):>4} cases agree")
        for case, found in wrong[:1]:
            print(f"  first: seed {case.seed}, {case.config}\n  {found}")
        failed += len(wrong)
    print(f"{time.perf_counter() - start:.0f} s")
    return int(failed > 0)


def kinds(case: Case) -> list[str]:
    wild = {"scheduling policy": case.with_order, "retention policy": case.with_retention}
    return [name for name, there in wild.items() if there] or [case.config.policy]


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 100))
