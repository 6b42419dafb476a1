"""How a server is started so that a system's engine-side policies run inside it."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import marsbench
from marsbench.engine.live.server import ServerCommand
from marsbench.errors import EngineError

SCHEDULER = "marsbench.engine.vllm.plugin.ServedScheduler"
SYNC_SCHEDULER = "marsbench.engine.vllm.plugin.SyncServedScheduler"


@dataclass(frozen=True, slots=True)
class Inside:
    """What a scheduler inside a server has to know; equal ones can share a server."""

    system: str
    """Dotted path (a registered name needs marsbench installed where the server runs)."""
    profile: str
    params: tuple[tuple[str, float], ...] = ()
    tool_cores: int = 0
    seed: int = 0

    def scheduler_cls(self, flags: Sequence[str]) -> str:
        """The scheduler class that goes with the other flags of a server."""
        return SYNC_SCHEDULER if "--no-async-scheduling" in flags else SCHEDULER

    def flags(self, link: Mapping[str, str]) -> list[str]:
        """Flags of vLLM that carry this and the addresses of the link to the scheduler."""
        told = {
            "system": self.system,
            "profile": self.profile,
            "params": dict(self.params),
            "tool_cores": self.tool_cores,
            "seed": self.seed,
            **link,
        }
        return ["--additional-config", json.dumps({"marsbench": told})]

    def importable(self, command: ServerCommand) -> ServerCommand:
        """The command with a path on which it finds what this process imports: the folder the
        user is in (policies of their own), and marsbench's unless it is installed.
        """
        source = Path(marsbench.__file__).resolve().parent.parent
        installed = source.name in {"site-packages", "dist-packages"}
        path = [*([] if installed else [str(source)]), str(Path.cwd())]
        path += [entry for entry in (os.environ.get("PYTHONPATH"),) if entry]
        env = {**command.env, "PYTHONPATH": os.pathsep.join(dict.fromkeys(path))}
        return dataclasses.replace(command, env=env)


def require_zmq() -> None:
    """EngineError with what to install where the link cannot be made."""
    if find_spec("zmq") is None:
        raise EngineError(
            "a system that schedules inside the engine is joined to the run over ZeroMQ, which is "
            "not installed: pip install 'marsbench[live]'"
        )
