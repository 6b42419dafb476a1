"""Say hello, as a command of a plug-in package."""

from __future__ import annotations

from typing import Annotated

import typer

from marsbench.errors import ConfigError


def skeleton(
    name: Annotated[str, typer.Option(help="Whom to greet.")] = "world",
) -> None:
    """Say hello. Results go to stdout, mistakes of the user are a ConfigError in one line."""
    if not name:
        raise ConfigError("--name: is empty; whom to greet?")
    print(f"hello {name}")
