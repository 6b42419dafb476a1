"""OpenHands agents as the ``openhands`` command sets them up (``openhands --headless``), without its screen.

The command's own code reads the settings, chooses prompt, tools, condenser and security analyzer, and
makes the conversation; what it would show is left out, and so are skills of the user and from the
network. Its SDK is older than that of ``openhands_sdk``, and its model must state a risk with each call.
"""

from __future__ import annotations

import importlib
import os
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

from marsbench.agents.runner.agents import AgentKind
from marsbench.agents.runner.openhands_sdk import KIND as SDK
from marsbench.agents.runner.openhands_sdk import OpenHands

if TYPE_CHECKING:
    from openhands.sdk import LLM


class OpenHandsCommand(OpenHands):
    """One conversation of the command."""

    def _converse(self) -> Any:
        """As ``openhands_cli.setup`` makes it from settings on disk."""
        from openhands.sdk.security.confirmation_policy import NeverConfirm
        from openhands_cli import setup
        from openhands_cli.stores import AgentStore
        from openhands_cli.utils import get_default_cli_agent
        from rich.console import Console

        order = self._place.order
        folder = Path(order.env.get("HOME") or Path.home(), f"openhands-{order.session}")
        folder.mkdir(parents=True, exist_ok=True)
        os.environ["OPENHANDS_PERSISTENCE_DIR"] = str(folder)
        os.environ["OPENHANDS_WORK_DIR"] = str(self._place.seen)
        AgentStore().save(get_default_cli_agent(self._llm(order.base_url)))
        with Path(os.devnull).open("w", encoding="utf-8") as nowhere:
            return setup.setup_conversation(
                uuid.UUID(order.session),
                confirmation_policy=NeverConfirm(),
                event_callback=self._event,
                console=Console(file=nowhere),
                critic_disabled=True,
            )

    def _llm(self, base_url: str) -> LLM:
        """The command streams nothing; a condenser's requests have the same model."""
        return super()._llm(base_url).model_copy(update={"stream": False})


def _load() -> None:
    SDK.load()
    for name in ("openhands_cli.setup", "openhands_cli.utils", "openhands.tools"):
        importlib.import_module(name)
    stores: Any = importlib.import_module("openhands_cli.stores.agent_store")
    context = stores.AgentContext

    def local_only(**given: Any) -> Any:
        return context(**{**given, "load_user_skills": False, "load_public_skills": False})

    stores.AgentContext = local_only


KIND = AgentKind(
    name="openhands-cli",
    packages=("openhands", *SDK.packages),
    env=SDK.env,
    load=_load,
    make=OpenHandsCommand,
)
