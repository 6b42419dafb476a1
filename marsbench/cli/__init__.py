"""The command line: one file per command, each imported only when it runs."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from marsbench.errors import MarsbenchError
from marsbench.registry import unknown

COMMANDS: dict[str, tuple[str, str]] = {
    "run": ("marsbench.cli.run:run", "Run an experiment: a grid of cells into a run folder."),
    "watch": ("marsbench.cli.watch:watch", "Follow a run that publishes its events (--stream)."),
    "report": ("marsbench.cli.report:command", "Table, figures and report.html of runs."),
    "compare": ("marsbench.cli.compare:command", "Paired ratios with 95 % intervals."),
    "validate": ("marsbench.cli.validate:command", "Compare two engines step by step."),
    "calibrate": ("marsbench.cli.calibrate:command", "Fit a profile to a running engine."),
    "serve": ("marsbench.cli.serve:command", "Gateway: a system's policies before live engines."),
    "record": ("marsbench.cli.record:command", "Gateway that writes a trace of live agents."),
    "trace": ("marsbench.cli.trace:app", "Make, convert, describe, check and fetch traces."),
    "list": ("marsbench.cli.listing:list_names", "List systems, workloads, engines, profiles, ..."),
    "doctor": ("marsbench.cli.doctor:doctor", "Say what this machine can run and what is missing."),
}
"""Command -> (module:function or module:Typer app, one line of help), in order of help."""

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130

ClickError: type[Exception] = typer.BadParameter.__mro__[2]
"""The base of all command-line parsing errors, wherever typer keeps its click."""


class RunFailed(Exception):  # noqa: N818 - says what happened, and is no user error
    """A run did not finish; what is finished is kept. Exits with status 1 (130 if interrupted)."""

    def __init__(self, message: str, *, code: int = EXIT_FAILED) -> None:
        super().__init__(message)
        self.code = code


class LazyGroup(TyperGroup):
    """Commands from ``COMMANDS``; a command's module is imported when it is called."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in COMMANDS:
            raise unknown("command", cmd_name, COMMANDS)
        path, _ = COMMANDS[cmd_name]
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

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """The table's own lines, so that help imports no command."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


app = typer.Typer(cls=LazyGroup, add_completion=False, rich_markup_mode=None)


@app.callback(invoke_without_command=True)
def root(
    ctx: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
) -> None:
    """How much does the scheduler matter for coding agents?

    Replays agent traces against stock vLLM, published agent schedulers and MARS, with GPU memory
    and tool cores under pressure together. Try: marsbench run --system vllm --sessions 50
    """
    if version:
        from importlib.metadata import version as installed

        typer.echo(f"marsbench {installed('marsbench')}")
        raise typer.Exit
    if ctx.invoked_subcommand is None:
        typer.echo(ctx.get_help())


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of ``marsbench``: runs a command and turns errors into one line and a status."""
    given = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in given
    args = [arg for arg in given if arg != "--debug"]
    sys.path.append(str(Path.cwd()))  # a policy file beside the user is found by its dotted path
    command = typer.main.get_command(app)
    try:
        code = command.main(args, prog_name="marsbench", standalone_mode=False)
    except MarsbenchError as error:
        _fail(error, str(error), EXIT_USAGE, debug=debug)
    except RunFailed as error:
        _fail(error, str(error), error.code, debug=debug)
    except ClickError as error:
        message = getattr(error, "format_message", error.__str__)()
        _fail(error, f"{message} (see marsbench --help)", EXIT_USAGE, debug=debug)
    except typer.Abort as error:
        _fail(error, "interrupted", EXIT_INTERRUPTED, debug=debug)
    except OSError as error:
        _fail(error, str(error), EXIT_FAILED, debug=debug)
    if code == EXIT_INTERRUPTED:  # Ctrl-C, where no command had anything to keep
        print("marsbench: interrupted", file=sys.stderr)
    sys.exit(code if isinstance(code, int) else 0)


def _fail(error: BaseException, message: str, code: int, *, debug: bool) -> None:
    if debug:
        raise error
    print("marsbench:", " ".join(message.split()), file=sys.stderr)
    sys.exit(code)
