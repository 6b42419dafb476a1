"""SWE-agent actions as tool calls."""

from __future__ import annotations

from marsbench.core import ToolCall
from workloads.tool_class import TYPICAL_WALL_S, shell_class, tool_class

_COMMANDS = (
    "open goto scroll_up scroll_down create edit insert search_file search_dir find_file submit "
    "str_replace_editor undo_edit filemap view_image"
)
"""SWE-agent's own tools; any other first word is a shell command."""


def action_tool(action: str, wall_s: float | None) -> ToolCall:
    """Return the tool that an action calls: one of SWE-agent's own, or the shell."""
    word, _, rest = action.partition(" ")
    word = word.split("\n")[0]
    own = word in _COMMANDS.split()
    kind = tool_class(word, rest) if own else shell_class(action)
    return ToolCall(
        name=word if own else "bash",
        tool_class=kind,
        wall_s=TYPICAL_WALL_S[kind] if wall_s is None else wall_s,
    )
