"""The shipped scripts: what an agent says and calls, from the first look to the repaired bug.

Written by procedure from the mutation and a seed, in the manner in which coding agents work: look around,
run the failing test, read, sometimes reproduce or take a wrong path first, edit, test, test everything,
finish.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from marsbench.agents.atif import estimated_tokens
from marsbench.agents.task import WORKSPACE
from workloads.tasks.mutators import Mutation
from workloads.tasks.packages import Package

FOLDER = Path(__file__).resolve().parent / "packages"
CONTEXT_LINES = 8


class Replies:
    """Collects replies with tool calls in the words of OpenHands."""

    def __init__(self, draw: random.Random) -> None:
        self.made: list[dict[str, Any]] = []
        self._draw = draw

    def run(self, text: str, command: str, timeout_s: int = 600) -> None:
        """Say something and run a command."""
        self._call(text, "terminal", command=f"cd {WORKSPACE} && {command}", timeout=timeout_s)

    def view(self, text: str, file: str, first: int, last: int) -> None:
        """Say something and read lines of a file."""
        self._call(
            text,
            "file_editor",
            command="view",
            path=f"{WORKSPACE}/{file}",
            view_range=[first, last],
        )

    def replace(self, text: str, file: str, old: str, new: str) -> None:
        """Say something and edit."""
        self._call(
            text,
            "file_editor",
            command="str_replace",
            path=f"{WORKSPACE}/{file}",
            old_str=old,
            new_str=new,
        )

    def finish(self, text: str) -> None:
        """Say that the task is done."""
        self._call("", "finish", message=text)

    def choose(self, *texts: str) -> str:
        """One of several ways to say it."""
        return self._draw.choice(texts)

    def _call(self, text: str, name: str, **arguments: Any) -> None:
        number = len(self.made)
        if name in {"terminal", "file_editor"}:
            arguments["security_risk"] = "LOW"  # some versions insist on it
        function = {"name": name, "arguments": json.dumps(arguments, ensure_ascii=False)}
        message = {
            "role": "assistant",
            "content": text,
            "tool_calls": [{"id": f"call_{number:03d}", "type": "function", "function": function}],
        }
        thought = self._draw.randrange(20, 220)  # tokens of reasoning that are not passed on
        self.made.append({"message": message, "output_tokens": estimated_tokens(message) + thought})


def script(
    package: Package, file: str, mutation: Mutation, failing: Sequence[str], seed: int
) -> list[dict[str, Any]]:
    """The replies of one task."""
    draw = random.Random(f"{package.name}/{seed}/script")
    replies = Replies(draw)
    _look(replies, package, draw)
    test = f"{package.pytest} -q {failing[0]} 2>&1 | tail -40"
    replies.run(
        replies.choose(
            "Let me run the tests to see what fails.", "First, the failing test by itself."
        ),
        f"{package.test} 2>&1 | tail -40" if draw.random() < 0.5 else test,
    )
    lines = mutation.apply((FOLDER / package.name / file).read_text(encoding="utf-8"))
    _read(replies, file, mutation, len(lines.splitlines()), draw)
    if draw.random() < 0.4:
        replies.run(
            "I want to see what callers rely on before I change anything.",
            f'grep -rn "{_word(mutation, draw)}" src tests | head -30',
        )
    old, new = _edit(lines, mutation)
    if draw.random() < 0.3:
        wrong = new.replace(mutation.before, mutation.before.rstrip() + "  # repaired")
        replies.replace(
            "This line is the suspect. I mark the change while I try it.", file, old, wrong
        )
        replies.run("Does the test pass now?", test)
        replies.replace("It does. Without the remark, then.", file, wrong, new)
    else:
        replies.replace(
            replies.choose(
                "The condition here does not do what the docstring says. I repair it.",
                "Found it: this line contradicts what the tests and the README describe.",
            ),
            file,
            old,
            new,
        )
    replies.run("Now the test that failed.", test)
    if package.build:
        replies.run("The build has to work as well.", f"{package.build} 2>&1 | tail -5")
    replies.run(
        replies.choose("And the whole suite.", "Everything else has to stay green."),
        f"{package.test} 2>&1 | tail -15",
    )
    if draw.random() < 0.5:
        replies.run(
            "A last look at the change.", "git --no-pager diff --stat && git --no-pager diff"
        )
    replies.finish(
        f"The bug was in {file}, line {mutation.line}: `{mutation.after.strip()}` should be "
        f"`{mutation.before.strip()}`. All tests pass."
    )
    return replies.made


def _look(replies: Replies, package: Package, draw: random.Random) -> None:
    replies.run(
        replies.choose(
            "I'll start by exploring the repository.", "Let me look at the structure first."
        ),
        draw.choice(["git ls-files", "find . -name '*.py' | sort", "ls -R src tests"]),
    )
    if draw.random() < 0.7:
        replies.run("What is this package supposed to do?", "cat README.md pyproject.toml")
    if draw.random() < 0.3:
        replies.run(
            "Which Python and which tools are there?",
            "python --version && python -m pytest --version",
        )


def _read(
    replies: Replies, file: str, mutation: Mutation, num_lines: int, draw: random.Random
) -> None:
    if draw.random() < 0.5:
        replies.view(f"The traceback leads to {file}. I read it.", file, 1, num_lines)
        return
    replies.run(f"The traceback leads to {file}.", f"grep -n 'def \\|class ' {file}")
    first = max(1, mutation.line - 2 * CONTEXT_LINES)
    last = min(num_lines, mutation.line + CONTEXT_LINES)
    replies.view("This part is what the test goes through.", file, first, last)


def _edit(buggy: str, mutation: Mutation) -> tuple[str, str]:
    """Text that occurs once and holds the bug, and what it should be."""
    lines = buggy.splitlines()
    at = mutation.line - 1
    for reach in range(len(lines)):
        around = lines[max(0, at - reach) : at + reach + 1]
        old = "\n".join(around)
        if buggy.count(old) == 1:
            before = min(reach, at)
            around[before] = mutation.before
            return old, "\n".join(around)
    raise AssertionError("a whole file occurs once")


def _word(mutation: Mutation, draw: random.Random) -> str:
    """A name of the changed line."""
    words = [part for part in "".join(
        c if c.isidentifier() else " " for c in mutation.before
    ).split() if len(part) > 3]  # fmt: skip
    return draw.choice(words) if words else "def "
