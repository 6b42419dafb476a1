"""YAML is read as it is written: no key is silently dropped."""

from __future__ import annotations

import pytest
import yaml

from marsbench.strict_yaml import load_yaml


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a: 1\nb: 2\na: 3\n", 3),
        ("a:\n  b: 1\n  b: 1\n", 3),
        ("- {x: 1, x: 2}\n", 1),
        ("base: &b {x: 1}\nuse:\n  <<: *b\n  y: 1\n  y: 2\n", 5),
    ],
)
def test_a_key_given_twice_is_an_error_with_its_line(text, line):
    """A repeated key is an error wherever it stands, even with the same value."""
    with pytest.raises(yaml.YAMLError, match="is given twice, first on line") as caught:
        load_yaml(text)
    assert caught.value.problem_mark.line + 1 == line


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a: 1\nb: {a: 2}\n", {"a": 1, "b": {"a": 2}}),
        ("base: &b {x: 1}\nuse: {<<: *b, x: 2}\n", {"base": {"x": 1}, "use": {"x": 2}}),
        ("1: a\n'1': b\n", {1: "a", "1": "b"}),
        ("", None),
    ],
)
def test_what_is_not_repeated_is_read_as_ever(text, value):
    """Equal keys of two mappings, a merged key that is overridden, and 1 beside "1" are fine."""
    assert load_yaml(text) == value
