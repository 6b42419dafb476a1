"""Tool classes of calls seen on the wire, from tool name and the start of a shell command.

Names follow ``marsbench.core.ToolCall.tool_class``. Importers of recorded trajectories have a finer
classifier of their own; here only names and the first words of a command are looked at.
"""

from __future__ import annotations

import re

_NAMES = {
    "read": "read view open grep glob ls list_dir list_files read_file find_file search_file "
    "search_dir file_search codebase_search",
    "edit": "edit write multiedit create insert apply_patch str_replace write_file edit_file "
    "replace str_replace_editor str_replace_based_edit_tool file_editor editor",
    "plan": "think todowrite todoread task_tracker update_plan finish plan exitplanmode",
    "subagent": "task agent delegate spawn_agent wait_agent",
    "web": "webfetch websearch web_search browse browser fetch",
    "human": "askuserquestion ask_user request_user_input",
    "git": "submit",
}
NAME_CLASS = {name: kind for kind, names in _NAMES.items() for name in names.split()}
FINAL_CALLS = frozenset(
    ["finish", "submit", "final_answer", "attempt_completion", "complete_task", "exit", "done"]
)
"""Calls with which an agent says that its task is over: nothing runs, and nothing comes back."""
SHELLS = frozenset(
    [
        "bash",
        "shell",
        "terminal",
        "execute_bash",
        "run",
        "run_command",
        "exec_command",
        "local_shell_call",
        "run_shell_command",
        "powershell",
    ]
)
_COMMANDS = {
    "test": "pytest tox nosetests unittest jest vitest mocha ctest rspec phpunit",
    "build": "make cmake ninja pip pip3 npm yarn pnpm cargo mvn gradle gcc g++ go apt-get apt uv",
    "git": "git gh",
    "script": "python python3 node ruby perl bash sh php java",
    "shell_edit": "rm mv cp mkdir touch tee patch chmod ln",
    "shell_read": "cat ls grep rg find head tail wc pwd which tree stat file diff echo sed awk",
}
_PROGRAM_CLASS = {name: kind for kind, names in _COMMANDS.items() for name in names.split()}
_ORDER = ("test", "build", "script", "git", "shell_edit", "shell_read", "shell_other")
_TEST_WORDS = re.compile(r"\b(pytest|unittest|runtests?|run_tests?|cargo test|go test|npm test)\b")
_COMMAND_KEY = re.compile(r'"(?:command|cmd|script|code)"\s*:\s*\[?\s*"((?:[^"\\]|\\.)*)')


def classify(name: str, arguments: str = "") -> str:
    """Return the class of a call; ``arguments`` is the start of its JSON arguments."""
    plain = name.lower().rpartition("__")[2]
    if name.lower().startswith("mcp__"):
        return "mcp"
    if plain in SHELLS:
        return _shell_class(arguments)
    if plain in NAME_CLASS:
        return "read" if '"command": "view"' in arguments else NAME_CLASS[plain]
    return "shell_other"


def _shell_class(arguments: str) -> str:
    """The heaviest class among a command line's parts."""
    match = _COMMAND_KEY.search(arguments)
    command = match.group(1).replace('\\"', '"').replace("\\n", "\n") if match else arguments
    if _TEST_WORDS.search(command):
        return "test"
    found = {_program_class(part) for part in re.split(r"&&|\|\||[;|\n]", command) if part.strip()}
    return next((kind for kind in _ORDER if kind in found), "shell_other")


def _program_class(part: str) -> str:
    for word in part.split():
        program = word.rpartition("/")[2]
        if "=" in word or program in {"sudo", "time", "env", "timeout", "cd"} or word[0].isdigit():
            continue
        if program == "sed" and " -i" in part:
            return "shell_edit"
        return _PROGRAM_CLASS.get(program, "shell_other")
    return "shell_other"
