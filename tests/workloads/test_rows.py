"""Reading rows, and recognising files by their heads."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from marsbench.errors import TraceError
from workloads.rows import Row, between_s, head_values, read_rows, timestamp_s

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=6),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(st.dictionaries(st.text(max_size=4), JSON, min_size=1, max_size=5), st.integers(0, 400))
def test_a_cut_head_shows_a_part_of_the_value(value, cut):
    """Keys seen in a cut object are keys of the whole, and uncut ones are all there."""
    text = json.dumps(value).encode()
    for seen in head_values(text[:cut]):
        if isinstance(seen, dict) and cut < len(text):
            assert seen.keys() <= value.keys()
    assert head_values(text) == [value]
    assert head_values(json.dumps(value, indent=1).encode()) == [value]


def test_a_head_cut_inside_a_string_ends_before_it():
    """Commas and brackets inside strings do not count, nor does a cut escape."""
    assert head_values(b'{"a": [1, {"b": "x,]}') == [{"a": [1]}]
    assert head_values(b'{"a": 1, "b": "\\') == [{"a": 1}]
    assert head_values(b'{"a"') == []
    assert head_values(b"]") == []


def test_documents_lists_and_lines_give_rows(tmp_path):
    """An object, a list of objects, and JSONL of any name."""
    for name, text, lines in (
        ("a.json", '{"a": 1}', [None]),
        ("b.json", '{\n"a": 1}', [None]),
        ("c.json", '[{"a": 1}, {"a": 2}]', [None, None]),
        ("d.json", '{"a": 1}\n{"a": 2}\n', [1, 2]),
        ("e.jsonl", '{"a": 1}\n', [1]),
    ):
        file = tmp_path / name
        file.write_text(text)
        assert [row.line for row in read_rows(file)] == lines
    assert len(list(read_rows(tmp_path))) == 7


def test_numbers_are_checked():
    """Booleans, negatives, infinities and fractions are refused where they mean nothing."""
    row = Row({"a": True, "b": -1, "c": float("inf"), "d": 1.5, "e": 2.0}, "f", 3)
    for field in ("a", "b", "c", "d"):
        with pytest.raises(TraceError, match=rf"^f:3: {field}: "):
            row.integer(field)
    assert row.integer("e") == 2
    assert row.integer("missing", 7) == 7
    assert row.number("d") == 1.5


def test_times():
    """ISO times with or without zone, and numbers; a clock that goes back gives no time."""
    assert timestamp_s("1970-01-01T00:00:02.500Z") == 2.5
    assert timestamp_s("1970-01-01T00:00:02.500") == 2.5
    assert timestamp_s(3) == 3.0
    assert timestamp_s("soon") is None
    assert between_s(1.0, 3.5) == 2.5
    assert between_s(3.5, 1.0) == 0.0
    assert between_s(None, 1.0) == 0.0
