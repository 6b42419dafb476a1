"""mini-swe-agent: one tool (bash), every command a process of its own."""

from __future__ import annotations

import shlex
from typing import Any

from marsbench.agents.runner.agents import AgentKind, Place
from marsbench.agents.runner.tools import Refused

COMMAND_S = 600
SUBMITTED = "Submitted"


class MiniSwe:
    """One DefaultAgent in the local environment, with a slot around each command."""

    def __init__(self, place: Place) -> None:
        self.turns = 0
        self._place = place
        self._agent: Any = None

    def prepare(self) -> None:
        """Read the prompts; no model is asked yet."""
        import yaml
        from minisweagent.agents.default import DefaultAgent
        from minisweagent.config import builtin_config_dir
        from minisweagent.environments.local import LocalEnvironment
        from minisweagent.models.litellm_model import LitellmModel

        owner, order = self, self._place.order
        config = yaml.safe_load((builtin_config_dir / "mini.yaml").read_text(encoding="utf-8"))

        class Slotted(LocalEnvironment):  # type: ignore[misc]
            """Takes a slot, then runs the command."""

            def execute(self, action: Any, *args: Any, **kwargs: Any) -> Any:
                return owner.execute(super().execute, action, *args, **kwargs)

        model = LitellmModel(
            model_name=f"openai/{order.model}",
            cost_tracking="ignore_errors",
            model_kwargs={
                "api_base": f"{order.base_url}/v1",
                "api_key": order.api_key,
                "extra_headers": {"x-session-id": order.session},
                "drop_params": True,
                "num_retries": 0,
            },
            **_known(config.get("model", {}), ("observation_template", "format_error_template")),
        )
        agent_config = _known(config["agent"], ("system_template", "instance_template"))
        self._agent = DefaultAgent(
            model,
            Slotted(cwd=str(self._place.seen), timeout=COMMAND_S),
            step_limit=order.max_turns,
            cost_limit=0.0,
            **agent_config,
        )

    def run(self) -> tuple[bool, str]:
        """The agent's own loop."""
        result = self._agent.run(self._place.order.instruction)
        self.turns = self._agent.n_calls
        status = str(result.get("exit_status") or "")
        if self._place.tools.refused:
            return False, self._place.tools.refused
        return status == SUBMITTED, status

    def execute(self, inner: Any, action: Any, *args: Any, **kwargs: Any) -> Any:
        """Run a command under a slot."""
        command = str(action.get("command", ""))
        tools = self._place.tools
        call_id = str(action.get("tool_call_id") or "")
        if self._place.shell != ("bash",):
            action = {**action, "command": shlex.join([*self._place.shell, "-c", command])}
        with tools.call(self._agent.n_calls - 1, call_id, "bash", command) as record:
            result = inner(action, *args, **kwargs)
            record.error = bool(result.get("returncode"))
        if tools.refused:
            raise Refused(tools.refused)
        return result

    def steps(self) -> list[dict[str, Any]]:
        """From the agent's messages."""
        steps: list[dict[str, Any]] = []
        for message in self._agent.messages if self._agent else ():
            role = str(message.get("role"))
            text = message.get("content") or ""
            step = {
                "step_id": len(steps) + 1,
                "message": text if isinstance(text, str) else str(text),
            }
            if role == "assistant":
                actions = message.get("extra", {}).get("actions", [])
                step |= {
                    "source": "agent",
                    "tool_calls": [
                        {
                            "tool_call_id": str(action.get("tool_call_id") or ""),
                            "function_name": "bash",
                            "arguments": {"command": action.get("command", "")},
                        }
                        for action in actions
                    ],
                }
            elif role == "tool" and steps and steps[-1]["source"] == "agent":
                result = {
                    "source_call_id": message.get("tool_call_id"),
                    "content": step["message"],
                }
                steps[-1].setdefault("observation", {"results": []})["results"].append(result)
                continue
            else:
                step["source"] = "system" if role == "system" else "user"
            steps.append(step)
        return steps

    def close(self) -> None:
        """Nothing is kept between commands."""


def _known(given: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {name: given[name] for name in names if name in given}


def _load() -> None:
    import importlib

    for name in (
        "litellm",
        "minisweagent.agents.default",
        "minisweagent.environments.local",
        "minisweagent.models.litellm_model",
    ):
        importlib.import_module(name)


KIND = AgentKind(
    name="mini-swe-agent",
    packages=("mini-swe-agent", "litellm"),
    env={
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "MSWEA_SILENT_STARTUP": "1",
        "MSWEA_CONFIGURED": "true",
        "MSWEA_COST_TRACKING": "ignore_errors",
        "PYTHONWARNINGS": "ignore",
    },
    load=_load,
    make=MiniSwe,
)
