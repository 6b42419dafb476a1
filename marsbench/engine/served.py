"""What the scheduler plug-in of a live server is told, checked as a whole before a model is loaded.

vLLM builds its scheduler after the weights are in memory, and an error there ends in the tracebacks of
three processes. ``check_command_line`` therefore runs first: as one of vLLM's general plug-ins
(entry point ``vllm.general_plugins``), in the process that reads the command line.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any
from urllib.parse import urlsplit

from marsbench.core import PolicyContext
from marsbench.engine.profile import load_profile
from marsbench.errors import ConfigError, MarsbenchError
from marsbench.registry import load
from marsbench.system import Policies, System

PLACE = "additional-config: marsbench"
PLUGIN = "marsbench.engine.vllm.plugin"
ASYNC, SYNC = f"{PLUGIN}.ServedScheduler", f"{PLUGIN}.SyncServedScheduler"


@dataclass(frozen=True, slots=True)
class ServedOptions:
    """The options of one server's plug-in. Raises ConfigError for what cannot work."""

    system: str
    profile: str
    params: Mapping[str, float] = field(default_factory=dict)
    tool_cores: int = 0
    seed: int = 0
    listen: str = ""
    """ZeroMQ address of a control plane's event stream."""
    publish: str = ""
    """ZeroMQ address at which the scheduler tells what the engine does."""

    @classmethod
    def of(cls, additional_config: object) -> ServedOptions:
        """Read the options from vLLM's additional-config, else from MARSBENCH_SYSTEM and
        MARSBENCH_PROFILE.
        """
        given = (
            additional_config.get("marsbench", {}) if isinstance(additional_config, Mapping) else {}
        )
        if not isinstance(given, Mapping):
            raise ConfigError(f'{PLACE} must be an object like {{"system": "mars", ...}}')
        known = cls.__dataclass_fields__
        for name in given:
            if name not in known:
                close = get_close_matches(str(name), known, n=1)
                hint = f"; did you mean {close[0]!r}?" if close else ""
                raise ConfigError(f"{PLACE}.{name}: unknown{hint} (known: {', '.join(known)})")
        return cls(
            system=_text(given, "system", "a system (marsbench list systems)", "MARSBENCH_SYSTEM"),
            profile=_text(
                given, "profile", "the profile of this machine (marsbench list profiles)",
                "MARSBENCH_PROFILE",
            ),
            params=_params(given.get("params", {})),
            tool_cores=_whole(given, "tool_cores"),
            seed=_whole(given, "seed"),
            listen=_address(given, "listen"),
            publish=_address(given, "publish"),
        )  # fmt: skip

    def context(self) -> PolicyContext:
        """Return what the profile says of the deployment. The server's own sizes are to replace the
        profile's.
        """
        import dataclasses

        context = load_profile(self.profile).policy_context(self.tool_cores, self.seed)
        return dataclasses.replace(context, params=dict(self.params))

    def policies(self, context: PolicyContext) -> Policies:
        """Build the system's policies."""
        system = load("SYSTEMS", self.system)
        if not isinstance(system, System):
            raise ConfigError(f"{PLACE}.system: {self.system} is not a marsbench.system.System")
        if system.clairvoyant is not None:
            raise ConfigError(
                f"{PLACE}.system: {self.system} sees the future; no server can run it"
            )
        return system.build(context)


def check_command_line(argv: Sequence[str] | None = None) -> None:
    """End the server with one line and status 2 if its command line names this plug-in and cannot work.

    A command line without this plug-in, or one whose configuration is in a file, is left alone.
    """
    arguments = sys.argv[1:] if argv is None else list(argv)
    scheduler = _given(arguments, "--scheduler-cls")
    if scheduler is None or not scheduler.startswith("marsbench."):
        return
    try:
        _check(scheduler, arguments)
    except MarsbenchError as error:
        print(f"marsbench: {error}", file=sys.stderr)
        raise SystemExit(2) from None


def _check(scheduler: str, arguments: Sequence[str]) -> None:
    if scheduler not in {ASYNC, SYNC}:
        raise ConfigError(f"--scheduler-cls {scheduler}: use {ASYNC}")
    synchronous = "--no-async-scheduling" in arguments
    if synchronous and scheduler == ASYNC:
        raise ConfigError(f"--scheduler-cls: with --no-async-scheduling use {SYNC}")
    text = _given(arguments, "--additional-config")
    if text is None and "--config" in arguments:
        return
    try:
        given = json.loads(text) if text is not None else {}
    except ValueError as error:
        raise ConfigError(f"--additional-config is not JSON: {error}") from None
    options = ServedOptions.of(given)
    options.policies(options.context())


def _given(arguments: Sequence[str], flag: str) -> str | None:
    """The value of a flag, in either form and with either dash; the last one counts, as in argparse."""
    found = None
    for index, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if name.replace("_", "-") != flag:
            continue
        if equals:
            found = value
        elif index + 1 < len(arguments):
            found = arguments[index + 1]
    return found


def _text(given: Mapping[str, Any], name: str, what: str, variable: str) -> str:
    value = given.get(name) or os.environ.get(variable)
    if not value:
        raise ConfigError(f"{PLACE}.{name} is missing: name {what}, or set {variable}")
    if not isinstance(value, str):
        raise ConfigError(f"{PLACE}.{name}: expected a name, got {value!r}")
    return value


def _whole(given: Mapping[str, Any], name: str) -> int:
    value = given.get(name, 0)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ConfigError(f"{PLACE}.{name}: expected a whole number >= 0, got {value!r}")
    return value


def _params(given: object) -> dict[str, float]:
    if not isinstance(given, Mapping):
        raise ConfigError(f"{PLACE}.params: expected an object of numbers, got {given!r}")
    for name, value in given.items():
        if not isinstance(value, int | float):
            raise ConfigError(f"{PLACE}.params.{name}: expected a number, got {value!r}")
    return {str(name): float(value) for name, value in given.items()}


def _address(given: Mapping[str, Any], name: str) -> str:
    value = given.get(name, "")
    if value and (
        not isinstance(value, str) or urlsplit(value).scheme not in {"ipc", "tcp", "inproc"}
    ):
        raise ConfigError(
            f"{PLACE}.{name}: {value!r} is no address like ipc:///run/marsbench or "
            "tcp://127.0.0.1:5555"
        )
    return str(value)
