"""What MkDocs does not do by itself: the folders' README files as pages, links as in the repository, and
reference pages made from the code. Used by mkdocs.yml.
"""

from __future__ import annotations

import logging
import posixpath
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parent.parent
PAGES = ("CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")
FOLDERS = ("workloads", "baselines", "mars_impl", "marsbench", "deploy", "results/reference", "scripts", "tests")  # fmt: skip
LEFT_OUT = ("workloads/tasks/packages/",)  # data: what tasks are made of
SOURCE = "https://github.com/marsbench/marsbench"
LINK = re.compile(r"(!?\[[^\]]*\]\()([^)\s]+)(\))")
FENCE = re.compile(r"^(```.*?^```|`[^`\n]+`)", re.MULTILINE | re.DOTALL)
TITLES = {"importers": "Trace formats", "arrivals": "Arrival processes", "tools": "Tool models"}
"""Of the kinds of `marsbench list` whose name alone does not say what they are."""

log = logging.getLogger("mkdocs.hooks.marsbench")


def documents() -> list[str]:
    """Documents of the repository that become pages, by their path in it."""
    found = [*PAGES, "results/README.md"]
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*.md")):
            name = path.relative_to(ROOT).as_posix()
            if not name.startswith(LEFT_OUT) and ".venv" not in name:
                found.append(name)
    return found


def on_files(files: Any, config: Any) -> Any:
    """Add the repository's documents, their pictures, and the generated pages."""
    pictures: set[str] = set()
    for name in documents():
        files.append(File.generated(config, name, abs_src_path=str(ROOT / name)))
        text = (ROOT / name).read_text(encoding="utf-8")
        pictures |= _pictures(name, text)
    for page in (ROOT / "docs").rglob("*.md"):
        name = page.relative_to(ROOT).as_posix()
        pictures |= _pictures(name, page.read_text(encoding="utf-8"))
    for name in sorted(pictures):
        if not name.startswith("docs/"):
            files.append(File.generated(config, name, abs_src_path=str(ROOT / name)))
    for uri, make in GENERATED.items():
        files.append(File.generated(config, uri, content=make()))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Turn links as they work in the repository into links of the site, or to the sources."""
    uri = page.file.src_uri
    if uri in GENERATED:
        return markdown
    here = uri if page.file.generated_by else f"docs/{uri}"

    def rewritten(match: re.Match[str]) -> str:
        target = _target(match[2], here, uri, files)
        return f"{match[1]}{target}{match[3]}"

    parts = FENCE.split(markdown)  # code is between, and stays
    return "".join(p if p.startswith("`") else LINK.sub(rewritten, p) for p in parts)


def _target(link: str, here: str, uri: str, files: Any) -> str:
    if re.match(r"[a-z]+:|#", link):
        return link
    name, hash_, anchor = link.partition("#")
    path = posixpath.normpath(posixpath.join(posixpath.dirname(here), name))
    if not (ROOT / path).exists():
        log.warning("%s links to %s, which does not exist", here, link)
        return link
    if path == "README.md":
        page = "index.md"
    elif (ROOT / path).is_dir():
        page = f"{path}/README.md"
    else:
        page = path.removeprefix("docs/")
    if files.get_file_from_path(page) is not None:
        relative = posixpath.relpath(page, posixpath.dirname(uri) or ".")
        return f"{relative}{hash_}{anchor}"
    kind = "tree" if (ROOT / path).is_dir() else "blob"
    return f"{SOURCE}/{kind}/main/{path}{hash_}{anchor}"


def _pictures(name: str, text: str) -> set[str]:
    links = re.findall(r"\]\(([^)\s]+\.(?:png|svg))\)", text)
    paths = (posixpath.normpath(posixpath.join(posixpath.dirname(name), link)) for link in links)
    return {path for path in paths if "://" not in path and (ROOT / path).is_file()}


def _commands() -> str:
    """Every command with its arguments and options, as ``--help`` says them."""
    from typer.cli import get_docs_for_click
    from typer.main import get_command

    from marsbench.cli import COMMANDS
    from marsbench.cli.group import app

    group = get_command(app)
    context = group.make_context("marsbench", [], resilient_parsing=True)
    parts = ["# Commands\n\nMade from the code; `marsbench COMMAND --help` says the same.\n"]
    for name in COMMANDS:
        command = group.get_command(context, name)  # type: ignore[attr-defined]
        text = get_docs_for_click(
            obj=command, ctx=context, name=name, indent=1, call_prefix="marsbench"
        )
        parts.append(text)
    return "\n".join(parts)


def _names() -> str:
    """What a run can name, kind by kind, and the formula of each metric."""
    from marsbench.cli.catalogue import KINDS, catalogue

    parts = ["# Names and metrics\n\nMade from the code; `marsbench list` prints the same.\n"]
    for kind in KINDS:
        title = TITLES.get(kind, kind.capitalize())
        rows = [f"| `{name}` | {_cell(line)} |" for name, line in catalogue(kind).items()]
        parts.append(f"## {title}\n\n| name | what it is |\n|---|---|\n" + "\n".join(rows) + "\n")
    return "\n".join(parts)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*")


GENERATED: dict[str, Callable[[], str]] = {
    "reference/commands.md": _commands,
    "reference/names.md": _names,
}
