"""Reads YAML as written: a key that stands twice in one mapping is an error, never a silent choice."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import yaml


class _StrictLoader(yaml.SafeLoader):
    """PyYAML's safe loader, which by itself would keep the last of several equal keys."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        # NOTE: checked before the parent merges `<<` keys in, because a merged key may be overridden.
        if isinstance(node, yaml.MappingNode):
            self._refuse_repeats(node)
        return super().construct_mapping(node, deep)

    def _refuse_repeats(self, node: yaml.MappingNode) -> None:
        first_lines: dict[tuple[str, str], int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == "tag:yaml.org,2002:merge":
                continue
            name = (key.tag, key.value)
            if name in first_lines:
                raise yaml.constructor.ConstructorError(
                    problem=f"key {key.value!r} is given twice, first on line {first_lines[name]}; "
                    "keep one of them",
                    problem_mark=key.start_mark,
                )
            first_lines[name] = key.start_mark.line + 1


def load_yaml(text: str) -> Any:
    """The value of a YAML document.

    Raises yaml.YAMLError, with the place in ``problem_mark`` where it is known, if the text is not
    YAML or if a mapping holds one key twice.
    """
    return yaml.load(text, Loader=_StrictLoader)  # noqa: S506  (a safe loader, made stricter)
