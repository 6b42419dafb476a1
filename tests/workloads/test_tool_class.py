"""Classes of tool calls."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workloads.tool_class import CLASSES, TYPICAL_WALL_S, shell_class, tool_class


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("cat a.py | head -5", "shell_read"),
        ("ls -la 2>/dev/null", "shell_read"),
        ("cd /repo && python -m pytest tests -q 2>&1 | tail -3", "test"),
        ("pip install -e . && pytest", "build"),  # the longer part names the class
        ("python reproduce.py", "script"),
        ("PYTHONPATH=src timeout 60 python3 a.py", "script"),
        ("git diff && git log | head", "git"),
        ("sed -n 1,5p a.py", "shell_read"),
        ("sed -i 's/a/b/' a.py", "shell_edit"),
        ("echo 'x > y; rm z'", "shell_read"),  # quoted text is no command
        ("echo hi > out.txt", "shell_edit"),
        ("cat <<'EOF' > a.py\nimport pytest\nEOF", "shell_edit"),  # a here-document is no command
        ("python - <<'EOF'\nprint(1)\nEOF", "script"),
        ("cargo test --all", "test"),
        ("cargo build", "build"),
        ("npm install", "build"),
        ("uv run pytest -x", "test"),
        ("./manage.py runserver", "shell_other"),
        ("python manage.py test app", "test"),
        ("", "shell_read"),
        ("cd /repo", "shell_read"),
    ],
)
def test_shell_commands(command, expected):
    """A command line has the class of its slowest part."""
    assert shell_class(command) == expected


@pytest.mark.parametrize(
    ("name", "command", "expected"),
    [
        ("Read", None, "read"),
        ("Grep", None, "read"),
        ("MultiEdit", None, "edit"),
        ("TodoWrite", None, "plan"),
        ("Task", None, "subagent"),
        ("WebSearch", None, "web"),
        ("mcp__db__query", None, "mcp"),
        ("AskUserQuestion", None, "human"),
        ("Bash", "pytest", "test"),
        ("Bash", None, "shell_other"),
        ("str_replace_editor", "view /a.py", "read"),
        ("str_replace_editor", "str_replace /a.py", "edit"),
        ("file_editor", "view", "read"),
        ("never-heard-of", None, "shell_other"),
    ],
)
def test_tool_names(name, command, expected):
    """Names of all harnesses map to one set of classes; shells and editors look at the command."""
    assert tool_class(name, command) == expected


@given(st.text(max_size=60))
def test_any_command_has_a_class(command):
    """No command line is without a class, and each class has a typical duration."""
    assert shell_class(command) in CLASSES
    assert set(TYPICAL_WALL_S) == set(CLASSES)
