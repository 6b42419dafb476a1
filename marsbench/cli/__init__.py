"""The command line: one file per command, each imported only when it runs."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from marsbench.errors import MarsbenchError

if TYPE_CHECKING:
    from typing import NoReturn

COMMANDS: dict[str, tuple[str, str]] = {
    "run": ("marsbench.cli.run:run", "Run an experiment: a grid of cells into a run folder."),
    "merge": ("marsbench.cli.merge:command", "Put the shards of a run into one run folder."),
    "watch": ("marsbench.cli.watch:watch", "Follow a run that publishes its events (--stream)."),
    "report": ("marsbench.cli.report:command", "Table, figures and report.html of runs."),
    "compare": ("marsbench.cli.compare:command", "Paired ratios with 95 % intervals."),
    "capacity": (
        "marsbench.cli.capacity:command",
        "The highest load that each system sustains with an objective met.",
    ),
    "reproduce": (
        "marsbench.cli.reproduce:command",
        "A published evaluation again, beside what was published.",
    ),
    "sensitivity": (
        "marsbench.cli.sensitivity:command",
        "What each parameter of a system is worth, one at a time.",
    ),
    "check": ("marsbench.cli.check:command", "Fail when a run is worse than a reference."),
    "export": ("marsbench.cli.export:command", "A run for Perfetto or OpenTelemetry."),
    "validate": ("marsbench.cli.validate:command", "Compare two engines step by step."),
    "calibrate": ("marsbench.cli.calibrate:command", "Fit a profile to a running engine."),
    "serve": ("marsbench.cli.serve:command", "Gateway: a system's policies before live engines."),
    "record": ("marsbench.cli.record:command", "Gateway that writes a trace of live agents."),
    "trace": ("marsbench.cli.trace:app", "Make, convert, describe, check and fetch traces."),
    "list": ("marsbench.cli.listing:list_names", "List systems, workloads, engines, profiles, ..."),
    "doctor": ("marsbench.cli.doctor:doctor", "Say what this machine can run and what is missing."),
}
"""Command -> (module:function or module:Typer app, one line of help), in order of help."""

ABOUT = """\
How much does the scheduler matter for coding agents?

Replays agent traces against stock vLLM, published agent schedulers and MARS,
with GPU memory and tool cores under pressure together.
Try: marsbench run --system vllm --sessions 50
"""
OPTIONS = (
    ("--version", "Print the version."),
    ("--debug", "Show tracebacks."),
    ("--install-completion", "Let the shell complete commands and options."),
    ("--show-completion", "Print what --install-completion would add."),
    ("-h, --help", "Show this message; after a command, its options."),
)

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130
EXIT_TERMINATED = 143


class RunFailed(Exception):  # noqa: N818 - says what happened, and is no user error
    """A run did not finish; what is finished is kept. Exits with status 1 (130 if interrupted)."""

    def __init__(self, message: str, *, code: int = EXIT_FAILED) -> None:
        super().__init__(message)
        self.code = code


def __getattr__(name: str) -> Any:
    """``marsbench.cli.app``, the whole command line as a Typer app, made when it is asked for:
    Typer takes longer to import than ``marsbench --help`` may take.
    """
    if name != "app":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from marsbench.cli.group import app

    return app


def commands() -> Mapping[str, tuple[str, str]]:
    """COMMANDS, and after them those of plug-in packages."""
    from marsbench.registry import first_line, table

    found = dict(COMMANDS)
    for name, path in table("COMMANDS").items():
        module, _, attribute = path.rpartition(".")
        found.setdefault(name, (f"{module}:{attribute}", first_line(module)))
    return found


def help_text() -> str:
    """What ``marsbench --help`` prints; no command is imported for it."""
    try:
        rows = [(name, text) for name, (_, text) in commands().items()]
        broken = ""
    except MarsbenchError as error:
        rows = [(name, text) for name, (_, text) in COMMANDS.items()]
        broken = f"\nCommands of plug-ins are missing: {error}\n"
    about = "\n".join(f"  {line}".rstrip() for line in ABOUT.splitlines())
    return (
        f"Usage: marsbench [OPTIONS] COMMAND [ARGS]...\n\n{about}\n\n"
        f"Options:\n{_columns(OPTIONS)}\n\nCommands:\n{_columns(rows)}\n{broken}"
    )


def version_text() -> str:
    """What ``marsbench --version`` prints."""
    from importlib.metadata import version

    return f"marsbench {version('marsbench')}\n"


def _columns(rows: Sequence[tuple[str, str]]) -> str:
    width = max(len(left) for left, _ in rows)
    return "\n".join(f"  {left:<{width}}  {right}" for left, right in rows)


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of ``marsbench``: runs a command and turns errors into one line and a status."""
    given = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in given
    args = [arg for arg in given if arg != "--debug"]
    sys.path.append(str(Path.cwd()))  # a policy file beside the user is found by its dotted path
    completing = "_MARSBENCH_COMPLETE" in os.environ
    try:
        if completing or not _answer_at_once(args):
            from marsbench.cli.group import call

            call(args)
    except MarsbenchError as error:
        _fail(error, str(error), EXIT_USAGE, debug=debug)
    except RunFailed as error:
        _fail(error, str(error), error.code, debug=debug)
    except KeyboardInterrupt as error:  # where no command had anything to keep
        _fail(error, "interrupted", EXIT_INTERRUPTED, debug=debug)
    except OSError as error:
        _fail(error, str(error), EXIT_FAILED, debug=debug)
    sys.exit(0)


def _answer_at_once(args: Sequence[str]) -> bool:
    """Whether this was a question that needs no parser of options: help, version, ``list``.

    Typer, and pydantic with it, take longer to import than these answers may take.
    """
    if not args or args[0] in {"-h", "--help"}:
        sys.stdout.write(help_text())
    elif args[0] == "--version":
        sys.stdout.write(version_text())
    elif args[0] == "list" and (asked := _plain_list(args[1:])) is not None:
        from marsbench.cli.catalogue import print_names

        kind, as_json = asked
        print_names(kind, as_json=as_json)
    else:
        return False
    return True


def _plain_list(args: Sequence[str]) -> tuple[str, bool] | None:
    """The kind that ``list`` was asked for and whether as JSON; None if Typer has to look."""
    kinds = [arg for arg in args if arg != "--json"]
    if len(kinds) > 1 or any(kind.startswith("-") for kind in kinds):
        return None
    return "".join(kinds), "--json" in args


def _fail(error: BaseException, message: str, code: int, *, debug: bool) -> NoReturn:
    if debug:
        raise error
    print("marsbench:", " ".join(message.split()), file=sys.stderr)
    sys.exit(code)
