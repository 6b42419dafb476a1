"""Blocks of a Markdown document that programs write: what stands between two marker lines."""

from __future__ import annotations

from pathlib import Path

from marsbench.errors import ConfigError, ResultsError


def markers(name: str) -> tuple[str, str]:
    """Return the two lines around the block of that name, which a rendered page does not show."""
    return f"<!-- {name}:begin -->", f"<!-- {name}:end -->"


def read_block(document: Path, name: str) -> str:
    """Return what stands between the markers of a block, without the line ends beside them.

    Raises ConfigError unless the document has each marker once, the first before the second, and
    ResultsError if it cannot be read.
    """
    return _parts(document, name)[1].strip("\n")


def write_block(document: Path, name: str, text: str) -> None:
    """Replace what stands between the markers of a block; the rest of the document stays as it is.

    Raises ConfigError and ResultsError as ``read_block`` does; then the document is unchanged.
    """
    before, _, after = _parts(document, name)
    begin, end = markers(name)
    content = f"{before}{begin}\n{text.strip(chr(10))}\n{end}{after}"
    try:
        document.write_text(content, encoding="utf-8")
    except OSError as error:
        raise _unusable(document, error) from error


def _parts(document: Path, name: str) -> tuple[str, str, str]:
    """Return the document before, between and after the markers of a block."""
    try:
        text = document.read_text(encoding="utf-8")
    except OSError as error:
        raise _unusable(document, error) from error
    begin, end = markers(name)
    before, _, rest = text.partition(begin)
    block, _, after = rest.partition(end)
    if text.count(begin) != 1 or text.count(end) != 1 or end in before:
        problem = f"needs one line {begin} and one line {end} after it, where the table belongs"
        raise ConfigError(f"{document}: {problem}")
    return before, block, after


def _unusable(document: Path, error: OSError) -> ResultsError:
    return ResultsError(f"{document}: {error.strerror or error}; choose another file")
