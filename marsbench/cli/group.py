"""The command line as a Typer app whose commands are imported when they are called."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from marsbench import cli
from marsbench.errors import ConfigError
from marsbench.registry import unknown


class LazyGroup(TyperGroup):
    """The commands of the table; a command's module is imported when it is called."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(cli.commands())

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        known = cli.COMMANDS if cmd_name in cli.COMMANDS else cli.commands()
        if cmd_name not in known:
            raise unknown("command", cmd_name, known)
        path, _ = known[cmd_name]
        module, _, attribute = path.partition(":")
        target = getattr(importlib.import_module(module), attribute)
        if isinstance(target, typer.Typer):
            command = typer.main.get_command(target)
        else:
            alone = typer.Typer(add_completion=False, rich_markup_mode=None)
            alone.command(cmd_name)(target)
            command = typer.main.get_command(alone)
        command.name = cmd_name
        return command

    def get_help(self, ctx: Any) -> str:
        """The table's own lines, so that help imports no command."""
        return cli.help_text().rstrip("\n")


app = typer.Typer(
    cls=LazyGroup,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},  # commands inherit it
)


@app.callback(invoke_without_command=True)
def root(
    ctx: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """The options of the whole program."""
    if version:
        typer.echo(cli.version_text(), nl=False)
        raise typer.Exit
    if ctx.invoked_subcommand is None:
        typer.echo(ctx.get_help())


def call(args: Sequence[str]) -> None:
    """Run the command that the arguments name.

    Raises ConfigError for arguments that no command takes, KeyboardInterrupt on Ctrl-C.
    """
    click_error: type[Exception] = typer.BadParameter.__mro__[2]  # wherever typer keeps its click
    program = typer.main.get_command(app)
    try:
        code = program.main(args, prog_name="marsbench", standalone_mode=False)
    except click_error as error:
        message = getattr(error, "format_message", error.__str__)()
        raise ConfigError(f"{message} (see marsbench --help)") from error
    except typer.Abort as error:
        raise KeyboardInterrupt from error
    if code == cli.EXIT_INTERRUPTED:
        raise KeyboardInterrupt
