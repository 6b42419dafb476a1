"""OpenHands agents (openhands-sdk): the default agent of its command line, without a browser.

Terminal and file editor are OpenHands' own, with an executor of ours around theirs that takes a tool
slot first. Runs on the SDK of openhands-sdk and on the older one that openhands-ai pins.
"""

from __future__ import annotations

import contextlib
import uuid
from typing import TYPE_CHECKING, Any

from marsbench.agents.runner.agents import AgentKind, Place
from marsbench.agents.runner.tools import Refused
from marsbench.agents.runner.warm_up import small_model

if TYPE_CHECKING:
    from openhands.sdk import LLM, Conversation
    from openhands.sdk.event import ActionEvent

SILENCE_S = 600
"""A command that prints nothing for so long is handed back to the agent as still running."""
IN_PROCESS = ("finish", "think", "task_tracker")
"""Tools that only talk: they take no slot."""


class OpenHands:
    """One conversation of the SDK."""

    def __init__(self, place: Place) -> None:
        self.turns = 0
        self._place = place
        self._replies: dict[str, int] = {}
        self._open: list[ActionEvent] = []
        self._events: list[Any] = []
        self._conversation: Conversation | None = None

    def prepare(self) -> None:
        """Start the shell and take in the task; no model is asked yet."""
        self._warm_up()
        _register(self)
        self._conversation = self._converse()
        self._conversation.send_message(self._place.order.instruction)

    def _converse(self) -> Conversation:
        """A conversation that has its agent and its shell."""
        from openhands.sdk import Agent, Conversation, Tool

        order = self._place.order
        agent = Agent(
            llm=self._llm(order.base_url),
            tools=[
                Tool(name="terminal"),
                Tool(name="file_editor"),
                Tool(name="task_tracker"),
            ],
            system_prompt_kwargs={"cli_mode": True},
        )
        return Conversation(
            agent=agent,
            workspace=str(self._place.seen),
            conversation_id=uuid.UUID(order.session),
            callbacks=[self._event],
            token_callbacks=[lambda _chunk: None],  # asks for streams: the first token is seen
            max_iteration_per_run=order.max_turns,
            stuck_detection=False,
            visualizer=None,
        )

    def terminal_params(self) -> dict[str, Any]:
        """For OpenHands' terminal."""
        params = {"terminal_type": "subprocess", "no_change_timeout_seconds": SILENCE_S}
        shell = self._place.shell_file()
        return {**params, "shell_path": shell} if shell else params

    def run(self) -> tuple[bool, str]:
        """The agent's own loop."""
        conversation = self._conversation
        assert conversation is not None, "prepare() comes first"
        conversation.run()
        if self._place.tools.refused:
            return False, self._place.tools.refused
        status = str(getattr(conversation.state.execution_status, "value", ""))
        return status == "finished", f"the conversation is {status}"

    def steps(self) -> list[dict[str, Any]]:
        """From the conversation's events."""
        from marsbench.agents.runner.openhands_steps import steps_of

        return steps_of([event.model_dump(mode="json") for event in self._events])

    def close(self) -> None:
        """End the shell."""
        if self._conversation is not None:
            with contextlib.suppress(Exception):
                self._conversation.close()

    def execute(self, inner: Any, action: Any, conversation: Any) -> Any:
        """Run a tool under a slot; called by the executor that stands around ``inner``."""
        event = self._taken(action)
        tools = self._place.tools
        try:
            with tools.call(
                self._replies[event.llm_response_id],
                event.tool_call_id,
                event.tool_name,
                event.tool_call.arguments,
                inside=event.tool_name != "terminal",
            ) as record:
                observation = inner(action, conversation)
                record.error = bool(getattr(observation, "is_error", False))
                return observation
        except Refused as error:
            conversation.pause()
            raise ValueError(str(error)) from error  # the SDK's word for a tool that did not run
        finally:
            if tools.refused:
                conversation.pause()

    def _taken(self, action: Any) -> ActionEvent:
        for index, event in enumerate(self._open):
            if event.action is action or event.action == action:
                return self._open.pop(index)
        raise Refused("a tool call that no reply asked for")

    def _event(self, event: Any) -> None:
        self._events.append(event)
        reply = getattr(event, "llm_response_id", None)
        if reply and reply not in self._replies:
            self._replies[reply] = self.turns
            self.turns += 1
        if type(event).__name__ == "ActionEvent" and event.tool_name not in IN_PROCESS:
            self._open.append(event)

    def _warm_up(self) -> None:
        """Ask another model something, so that the task's first request is as quick as all others."""
        from openhands.sdk import Message, TextContent

        hello = Message(role="user", content=[TextContent(text="hello")])
        with small_model() as url:
            self._llm(url).completion([hello], on_token=lambda _chunk: None)

    def _llm(self, base_url: str) -> LLM:
        from openhands.sdk import LLM
        from pydantic import SecretStr

        order = self._place.order
        options: dict[str, Any] = {
            "model": f"openai/{order.model}",
            "base_url": f"{base_url}/v1",
            "api_key": SecretStr(order.api_key),
            "usage_id": "agent",
            "stream": True,
            "num_retries": 0,  # its waits of 8 to 64 s are no part of what is measured
            "timeout": None,
            "extra_headers": {"x-session-id": order.session},
        }
        if "capability_overrides" in LLM.model_fields:  # not in the SDK that openhands-ai pins
            options["capability_overrides"] = {
                "supports_reasoning_effort": False,
                "supports_sampling_params": True,
            }
        return LLM(**options)


def _register(agent: OpenHands) -> None:
    """Terminal and file editor with slots; a process has one agent, so they know theirs."""
    from openhands.sdk.tool import ToolExecutor, register_tool
    from openhands.tools.file_editor import FileEditorTool
    from openhands.tools.task_tracker import TaskTrackerTool
    from openhands.tools.terminal import TerminalTool

    class SlottedExecutor(ToolExecutor):  # type: ignore[misc]
        """Takes a slot, then does what the executor inside does."""

        def __init__(self, inner: Any) -> None:
            self.inner = inner

        def __call__(self, action: Any, conversation: Any = None) -> Any:
            return agent.execute(self.inner, action, conversation)

        def close(self) -> None:
            self.inner.close()

        def __getattr__(self, name: str) -> Any:
            return getattr(self.inner, name)

    def slotted(tools: Any) -> list[Any]:
        return [tool.set_executor(SlottedExecutor(tool.executor)) for tool in tools]

    class SlottedTerminal(TerminalTool):  # type: ignore[misc]
        """OpenHands' terminal."""

        name = "terminal"

        @classmethod
        def create(cls, *args: Any, **params: Any) -> list[Any]:
            return slotted(TerminalTool.create(*args, **{**agent.terminal_params(), **params}))

    class SlottedEditor(FileEditorTool):  # type: ignore[misc]
        """OpenHands' file editor."""

        name = "file_editor"

        @classmethod
        def create(cls, *args: Any, **params: Any) -> list[Any]:
            return slotted(FileEditorTool.create(*args, **params))

    register_tool("terminal", SlottedTerminal)
    register_tool("file_editor", SlottedEditor)
    register_tool("task_tracker", TaskTrackerTool)


def _load() -> None:
    import importlib

    for name in (
        "litellm",
        "openai.resources",
        "openai.resources.chat.completions",
        "openai.resources.responses",
        "httpcore",
        "tiktoken_ext.openai_public",
        "litellm.litellm_core_utils.default_encoding",
        "openhands.sdk",
        "openhands.tools.terminal.impl",
        "openhands.tools.file_editor.impl",
        "openhands.tools.task_tracker",
        "marsbench.agents.runner.openhands_steps",
    ):
        importlib.import_module(name)


KIND = AgentKind(
    name="openhands",
    packages=("openhands-sdk", "openhands-tools", "openhands-ai", "litellm"),
    env={
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # else it is fetched from the network
        "OPENHANDS_SUPPRESS_BANNER": "1",
        "OH_TERMINAL_PROCESS_PRIORITY": "none",  # niceness is the scheduling system's business
        "LOG_LEVEL": "ERROR",
        "PYTHONWARNINGS": "ignore",
    },
    load=_load,
    make=OpenHands,
)
