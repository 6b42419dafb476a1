"""Sorts tool calls into the classes on which durations and CPU demand depend."""

from __future__ import annotations

import re
import shlex

CLASSES = (
    "read",
    "edit",
    "shell_read",
    "shell_edit",
    "git",
    "script",
    "test",
    "build",
    "plan",
    "subagent",
    "web",
    "mcp",
    "human",
    "shell_other",
)

TYPICAL_WALL_S = {
    "read": 0.041,
    "edit": 0.041,
    "plan": 0.030,
    "shell_read": 0.137,
    "shell_edit": 0.461,
    "git": 0.197,
    "script": 0.995,
    "test": 2.01,
    "build": 1.81,
    "subagent": 44.9,
    "web": 7.97,
    "mcp": 3.81,
    "human": 12.4,
    "shell_other": 0.055,
}
"""Median seconds of a class, for formats without times. Unattended Claude Code on SWE-rebench
(agentcgroup, Haiku); web, mcp and human from interactive sessions (entireio); shell_other from
mini-SWE-agent on Terminal-Bench."""

_SHELL_NAMES = (
    "bash shell terminal execute_bash run cmdrunaction exec_command local_shell_call powershell "
    "run_command run_shell_command bashoutput write_stdin killshell killbash"
)
_EDITOR_NAMES = "str_replace_editor str_replace_based_edit_tool file_editor editor"
_NAMES = {
    "read": "read grep glob ls notebookread read_file list_dir list_files view open goto scroll_up "
    "scroll_down find_file search_file search_dir search filemap toolsearch recall",
    "edit": "edit write multiedit notebookedit create insert apply_patch str_replace undo_edit "
    "write_file edit_file replace undo_edit fileeditaction",
    "plan": "todowrite todoread update_plan think task_tracker exitplanmode enterplanmode "
    "task_tracking taskcreate taskupdate tasklist taskget skill finish exit",
    "git": "submit",
    "subagent": "task agent delegate taskoutput agentoutputtool spawn_agent wait_agent",
    "web": "webfetch websearch web_search browse browse_interactive browser",
    "human": "askuserquestion ask_user request_user_input",
    "script": "run_ipython execute_ipython_cell python ipython",
}
_CLASS_OF_NAME = {
    name: tool_class for tool_class, names in _NAMES.items() for name in names.split()
}

_WRAPPERS = (
    "sudo time nohup env timeout command exec xargs nice stdbuf poetry uv pipenv hatch pdm then do "
    "else ! { ("
)
_PROGRAMS = {
    "": "cd export source . set pushd popd true : alias unset conda sleep",
    "git": "git gh hg",
    "test": "pytest py.test tox nox jest vitest mocha ctest rspec phpunit unittest",
    "runner": "go cargo npm yarn pnpm make mvn gradle gradlew npx mvnw",
    "build": "pip pip3 cmake ninja apt apt-get gcc g++ clang cc javac bundle gem brew rustc tsc "
    "setup.py docker mypy ruff black flake8 pylint golangci-lint eslint pre-commit",
    "interpreter": "python python3 python2 node ruby perl bash sh java php lua Rscript",
    "shell_read": "ls cat head tail grep rg egrep find tree wc less more pwd which file stat diff "
    "awk cut sort uniq echo du df env printenv jq nl type whereis xxd od fd ack ag column tr comm",
    "shell_edit": "rm mv cp mkdir touch chmod chown ln patch tee dd rmdir unzip tar truncate "
    "apply_patch",
}
_KIND_OF_PROGRAM = {
    program: kind for kind, programs in _PROGRAMS.items() for program in programs.split()
}
_TEST_TARGETS = ("check", *_PROGRAMS["test"].split())
# Which part of a chained command names its class: the one that takes longest, first here.
_WEIGHT = ("build", "test", "script", "git", "shell_edit", "shell_other", "shell_read")
_SEPARATOR = re.compile(r"\s*(?:&&|\|\||;|\||\n|&(?!>|\d))\s*")
_HEREDOC = re.compile(r"<<-?\s*['\"]?(\w+)['\"]?(.*?)\n.*?^\s*\1\s*$", re.DOTALL | re.MULTILINE)
_REDIRECT = re.compile(r"(?<![0-9&])>{1,2}\s*(?!/dev/null|&|\s*$)\S")
_QUOTED = re.compile(r"'[^']*'|\"(?:[^\"\\]|\\.)*\"", re.DOTALL)


def tool_class(name: str, command: str | None = None) -> str:
    """Return the class of a call by the tool's name and, for shells and editors, by its command."""
    short = name.lower()
    if short.startswith(("mcp__", "mcp_")):
        return "mcp"
    if short in _EDITOR_NAMES.split():
        return "read" if (command or "").split(" ")[0] == "view" else "edit"
    if short in _SHELL_NAMES.split():
        return shell_class(command) if command else "shell_other"
    if short.startswith(("browser_", "web_browser")):
        return "web"
    return _CLASS_OF_NAME.get(short, "shell_other")


def shell_class(command: str) -> str:
    """Return the class of a shell command line, which is that of its slowest part."""
    bare = _HEREDOC.sub(r" \2", command.strip())
    writes = bool(_REDIRECT.search(_QUOTED.sub("''", bare)))
    masked = _QUOTED.sub(lambda match: re.sub(r"[;&|\n]", "_", match.group()), bare)
    found = {_part_class(part) for part in _SEPARATOR.split(masked) if part.strip()} - {""}
    if writes:
        found.add("shell_edit")
    return next((kind for kind in _WEIGHT if kind in found), "shell_read" if not found else "")


def _part_class(part: str) -> str:
    words = _words(part)
    while words and (words[0] in _WRAPPERS.split() or re.match(r"^\w+=", words[0])):
        wrapper = words.pop(0)
        if wrapper == "timeout":
            while words and (words[0].startswith("-") or re.match(r"^[\d.]+[smh]?$", words[0])):
                words.pop(0)
        elif words and words[0] == "run":
            words.pop(0)
    if not words or words[0].startswith("#"):
        return ""
    return _program_class(words[0].rsplit("/", 1)[-1], words[1:])


def _program_class(program: str, rest: list[str]) -> str:
    if program == "sed":
        in_place = any(word.startswith(("-i", "--in-place")) for word in rest)
        return "shell_edit" if in_place else "shell_read"
    kind = _KIND_OF_PROGRAM.get(program, "shell_other")
    if kind == "interpreter":
        return _script_class(rest)
    if kind == "runner":
        if any(word.startswith("test") or word in _TEST_TARGETS for word in rest):
            return "test"
        first = next((word for word in rest if not word.startswith("-")), "")
        return "script" if first in {"run", "exec"} and program in {"go", "cargo"} else "build"
    return kind


def _script_class(rest: list[str]) -> str:
    """Return the class of an interpreter's run, since tests and installers start as modules and scripts."""
    target = " ".join(rest[:4])
    if re.search(r"\b(pytest|unittest|nose2?|tox)\b|manage\.py test|runtests", target):
        return "test"
    if re.search(r"-m (pip|build|compileall|mypy|ruff|black|flake8)\b|setup\.py", target):
        return "build"
    return "script"


def _words(part: str) -> list[str]:
    try:
        return shlex.split(part, comments=False)
    except ValueError:
        return part.split()
