"""A marsbench system inside a live SGLang server, by SGLang's own plug-in mechanism.

Entry point ``marsbench`` of group ``sglang.srt.plugins`` (SGLang >= 0.5.11 looks there in each of its
processes). It does nothing unless it is told of a system: ``MARSBENCH_SYSTEM`` and
``MARSBENCH_PROFILE`` name the system and the profile of this machine, or ``MARSBENCH_SGLANG`` is a
JSON object with ``system`` and ``profile``, and as one likes ``params`` (policy parameters),
``listen`` (ZeroMQ address of a control plane's event stream: ``marsbench serve --publish``;
``marsbench run`` sets it) and ``publish`` (where the scheduler tells what the engine does). Empty, it
switches the plug-in off. A request names its session by ``session_id``, or by the ``marsbench_*``
fields of ``custom_params``; one that names none is a session of one turn.

SGLang only logs what goes wrong in a plug-in, and serves without it. This one ends the server
instead, with one line.
"""

from __future__ import annotations

import json
import os
import sys
from typing import NoReturn

from marsbench.engine.served import PLACE, ServedOptions
from marsbench.engine.sglang.flags import VARIABLE
from marsbench.engine.sglang.runtime import require_sglang
from marsbench.errors import ConfigError, EngineError, MarsbenchError

MODULE = "sglang.srt.managers.scheduler"
TARGET = f"{MODULE}.Scheduler"


def switched_on() -> bool:
    """Whether the plug-in was told to do anything."""
    given = os.environ.get(VARIABLE)
    return bool(os.environ.get("MARSBENCH_SYSTEM")) if given is None else bool(given)


def options() -> ServedOptions:
    """Return what the plug-in was told; ConfigError for what cannot work."""
    try:
        given = json.loads(os.environ.get(VARIABLE) or "{}")
    except ValueError as error:
        raise ConfigError(f"{VARIABLE}: not JSON ({error})") from error
    try:
        return ServedOptions.of({"marsbench": given})
    except ConfigError as error:
        raise ConfigError(str(error).replace(PLACE, VARIABLE)) from error  # vLLM's name for it


def activate() -> None:
    """Put our scheduler in the place of SGLang's.

    SGLang calls this in each of its processes. The one that reads the command line is the first:
    there a configuration that cannot work ends the server. In a scheduler's process the class is
    replaced.
    """
    if not switched_on():
        return
    try:
        told = options()
        told.policies(told.context())
        require_sglang("the plug-in")
        if MODULE in sys.modules:
            _take_the_place()
    except (MarsbenchError, ImportError, AttributeError) as error:
        end(str(error))


def _take_the_place() -> None:
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    from marsbench.engine.sglang.served import ServedSglangScheduler

    if sys.modules[MODULE].Scheduler is ServedSglangScheduler:
        return  # announced twice
    HookRegistry.register(TARGET, ServedSglangScheduler, HookType.REPLACE)
    HookRegistry.apply_hooks()
    if sys.modules[MODULE].Scheduler is not ServedSglangScheduler:
        raise EngineError(f"SGLang did not let the plug-in take the place of {TARGET}")


def end(why: str) -> NoReturn:
    """End this process of the server with one line; SGLang catches exceptions, not this."""
    raise SystemExit(f"marsbench: {' '.join(why.split())}")
