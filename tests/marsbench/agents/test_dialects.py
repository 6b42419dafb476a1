"""Scripts are spoken in each agent's own words."""

from __future__ import annotations

import json
import subprocess

from agents_cell import reply

from marsbench.agents.dialects import DONE, spoken


def command_of(step, workspace="/w") -> str:
    """What mini-swe-agent is told to run."""
    function = spoken(step.message, "mini-swe-agent", workspace)["tool_calls"][0]["function"]
    assert function["name"] == "bash"
    return json.loads(function["arguments"])["command"]


def test_path_of_the_workspace_is_filled_in():
    """The workspace's place in a script becomes its path, in text and arguments."""
    step = reply("terminal", text="in {workspace}", command="cd {workspace}")
    said = spoken(step.message, "openhands", "/mnt/workspace")
    assert said["content"] == "in /mnt/workspace"
    assert json.loads(said["tool_calls"][0]["function"]["arguments"]) == {
        "command": "cd /mnt/workspace"
    }


def test_commands_and_the_end_for_a_shell_only_agent():
    """A command stays what it is, and finishing is the line that ends a task there."""
    assert command_of(reply("terminal", command="ls")) == "ls"
    assert command_of(reply("finish", message="done")) == DONE


def test_edits_for_a_shell_only_agent(tmp_path):
    """An edit is the same edit where there is only a shell, and fails where it would fail."""
    path = tmp_path / "a file"
    path.write_text("one 'two'\nthree\n")
    edit = {"command": "str_replace", "path": "{workspace}/a file"}
    command = command_of(
        reply("file_editor", old_str="'two'", new_str='"2"', **edit), str(tmp_path)
    )
    assert subprocess.run(["bash", "-c", command], check=False, capture_output=True).returncode == 0
    assert path.read_text() == 'one "2"\nthree\n'
    again = subprocess.run(["bash", "-c", command], check=False, capture_output=True)
    assert again.returncode != 0


def test_views_for_a_shell_only_agent(tmp_path):
    """A view of some lines shows these lines."""
    (tmp_path / "f").write_text("1\n2\n3\n4\n")
    view = reply("file_editor", command="view", path="{workspace}/f", view_range=[2, 3])
    command = command_of(view, str(tmp_path))
    assert subprocess.check_output(["bash", "-c", command]) == b"2\n3\n"


def test_calls_of_the_command_state_a_risk():
    """OpenHands' command refuses calls without one; nothing else of the call changes."""
    said = spoken(reply("terminal", command="ls").message, "openhands-cli", "/w")
    function = said["tool_calls"][0]["function"]
    assert function["name"] == "terminal"
    assert json.loads(function["arguments"]) == {"command": "ls", "security_risk": "LOW"}
