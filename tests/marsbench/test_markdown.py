"""Blocks of Markdown documents are replaced between their markers, and nothing else is touched."""

from __future__ import annotations

import pytest

from marsbench.errors import ConfigError, ResultsError
from marsbench.markdown import markers, read_block, write_block

BEGIN, END = markers("x")


def test_a_block_goes_between_its_markers(tmp_path):
    """Text around the markers and blocks of other names stay; the same text again changes nothing."""
    page = tmp_path / "page.md"
    other = "<!-- xx:begin -->\nother\n<!-- xx:end -->\n"
    page.write_text(f"before\n{other}{BEGIN}\nold\n{END}\nafter\n")
    write_block(page, "x", "| a |\n| b |\n")
    wanted = f"before\n{other}{BEGIN}\n| a |\n| b |\n{END}\nafter\n"
    assert page.read_text() == wanted
    assert read_block(page, "x") == "| a |\n| b |"
    write_block(page, "x", read_block(page, "x"))
    assert page.read_text() == wanted


@pytest.mark.parametrize(
    "text", ["none", BEGIN, END, f"{END}\n{BEGIN}", f"{BEGIN}\n{END}\n{BEGIN}\n{END}"]
)
def test_a_document_without_its_markers_is_left_alone(tmp_path, text):
    """Missing, swapped and repeated markers are one line that names the document and the markers."""
    page = tmp_path / "page.md"
    page.write_text(text)
    with pytest.raises(ConfigError, match=r"page\.md: needs one line <!-- x:begin -->"):
        write_block(page, "x", "new")
    assert page.read_text() == text


def test_a_document_that_is_not_there(tmp_path):
    """A missing file is one line with its path."""
    with pytest.raises(ResultsError, match=r"none\.md: No such file.*choose another file"):
        read_block(tmp_path / "none.md", "x")
