"""The time SGLang's modules see: the virtual clock of the core that is running."""

from __future__ import annotations

import sys
import threading
import time
from types import ModuleType
from typing import Any

from marsbench.core import PS_PER_S, to_s

PS_PER_NS = 1000
PACKAGE = "sglang"


class VirtualClock:
    """Stands in for the module ``time``: clocks tell ``now_ps``, the rest is the module's own."""

    def __init__(self) -> None:
        self.now_ps = 0
        self._thread = threading.get_ident()

    def time(self) -> float:
        return to_s(self.now_ps)

    monotonic = perf_counter = process_time = thread_time = time

    def time_ns(self) -> int:
        return self.now_ps // PS_PER_NS

    monotonic_ns = perf_counter_ns = process_time_ns = thread_time_ns = time_ns

    def sleep(self, seconds: float) -> None:
        """Return at once, since nothing waits in virtual time; a helper thread waits as it always
        did.
        """
        if threading.get_ident() != self._thread:
            time.sleep(seconds)  # a real thread: only the core's own has virtual time

    def __getattr__(self, name: str) -> Any:
        return getattr(time, name)


CLOCK = VirtualClock()
"""One for the process, since modules are; a core sets it before it calls anything of SGLang."""

_TOLD = {
    getattr(time, name): name
    for name in dir(VirtualClock)
    if not name.startswith("_") and callable(getattr(time, name, None))
}
"""Functions of ``time`` -> their names, for modules that imported a function."""


def install() -> int:
    """Give the virtual clock to every loaded module of SGLang; the number of places changed."""
    changed = 0
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] == PACKAGE and isinstance(module, ModuleType):
            changed += _install_in(module)
    return changed


def _install_in(module: ModuleType) -> int:
    changed = 0
    for attribute, value in list(vars(module).items()):
        if value is time:
            setattr(module, attribute, CLOCK)
        elif callable(value) and _is_told(value):
            setattr(module, attribute, getattr(CLOCK, _TOLD[value]))
        else:
            continue
        changed += 1
    return changed


def _is_told(value: Any) -> bool:
    try:
        return value in _TOLD
    except TypeError:  # not hashable
        return False


def leaks() -> list[str]:
    """Return the modules of SGLang that still see the machine's clock."""
    return sorted(
        name
        for name, module in list(sys.modules.items())
        if name.partition(".")[0] == PACKAGE
        and isinstance(module, ModuleType)
        and any(value is time for value in vars(module).values())
    )


assert PS_PER_S == PS_PER_NS * 1_000_000_000
