"""The command line: one file per command, each imported only when it runs."""

from __future__ import annotations


def main() -> None:
    """Entry point of ``marsbench``; replaced by the command table."""
    raise SystemExit(2)
