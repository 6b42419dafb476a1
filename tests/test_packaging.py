"""What is installed and published: its size, its metadata, the README that a package index shows."""

from __future__ import annotations

import re
import sys
import tomllib
from importlib.metadata import distribution, entry_points
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from packaging.requirements import Requirement

from marsbench.errors import ConfigError
from marsbench.extras import EXTRAS, how_to_install
from marsbench.registry import GROUP, TABLES, table, tables

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
MOST_CORE_BYTES = 600_000_000
OURS = ("marsbench", "workloads", "baselines", "mars_impl")


def closure(names: list[str]) -> set[str]:
    """The distributions that installing these requirements installs, by lower-case name."""
    found: set[str] = set()
    waiting = [Requirement(name) for name in names]
    while waiting:
        wanted = waiting.pop()
        name = wanted.name.lower().replace("_", "-")
        applies = wanted.marker is None or any(
            wanted.marker.evaluate({"extra": extra}) for extra in (*wanted.extras, "")
        )
        if name in found or not applies:
            continue
        found.add(name)
        waiting += [Requirement(text) for text in distribution(name).requires or ()]
    return found


def size(name: str) -> int:
    """Bytes of a distribution's files, compiled modules left out (``pip install --no-compile``)."""
    files = [Path(str(file.locate())) for file in distribution(name).files or ()]
    return sum(file.stat().st_size for file in files if file.suffix != ".pyc" and file.is_file())


def test_the_core_is_small():
    """All that `pip install marsbench` brings stays below 600 MB, packages of extras not among it."""
    names = closure(PROJECT["project"]["dependencies"])
    own = [file for name in OURS for file in (ROOT / name).rglob("*") if file.suffix != ".pyc"]
    total = sum(size(name) for name in names) + sum(f.stat().st_size for f in own if f.is_file())
    assert total <= MOST_CORE_BYTES
    assert not names & {"datasets", "aiohttp", "opentelemetry-sdk", "vllm", "torch"}


def test_what_reads_datasets_says_how_to_get_them(tmp_path, monkeypatch, capsys):
    """Without the extra, a table of a dataset ends in one line that installs it."""
    from marsbench.cli import main

    monkeypatch.setitem(sys.modules, "datasets", None)
    path = tmp_path / "train.parquet"
    path.write_bytes(b"PAR1")
    with pytest.raises(SystemExit) as stopped:
        main(["trace", "stats", str(path)])
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "train.parquet needs datasets" in said
    assert how_to_install("datasets") in said


def published_readme() -> str:
    """The README as the build's hook writes it."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for rule in PROJECT["tool"]["hatch"]["metadata"]["hooks"]["fancy-pypi-readme"]["substitutions"]:
        text = re.sub(rule["pattern"], rule["replacement"], text)
    return text


def test_links_of_the_published_readme_are_absolute():
    """On a package index nothing is relative: images are the raw files, links the repository's pages."""
    text = published_readme()
    source = PROJECT["project"]["urls"]["Source"]
    raw = source.replace("github.com", "raw.githubusercontent.com") + "/main/"
    images = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", text)
    links = re.findall(r"(?<!!)\[[^\]]*\]\(([^)]+)\)", text)
    assert images
    assert links
    for image in images:
        assert (ROOT / image.removeprefix(raw)).is_file(), image
    for link in links:
        inside = link.removeprefix(f"{source}/blob/main/").partition("#")[0]
        assert link.startswith("https://"), link
        assert "://" in inside or (ROOT / inside).exists(), link


def test_metadata_names_the_project():
    """Authors, addresses and Python versions are said once, and the citation says the same."""
    project = PROJECT["project"]
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert [author["name"] for author in project["authors"]] == ["The marsbench developers"]
    assert [author["name"] for author in cited["authors"]] == ["The marsbench developers"]
    assert (cited["version"], cited["license"]) == (project["version"], project["license"])
    assert cited["repository-code"] == project["urls"]["Source"]
    workflow = yaml.safe_load((ROOT / ".github/workflows/tests.yml").read_text(encoding="utf-8"))
    tested = workflow["jobs"]["check"]["strategy"]["matrix"]["python"]
    told = [name.rpartition(" ")[2] for name in project["classifiers"] if ":: 3." in name]
    assert told == tested


def test_every_extra_that_doctor_knows_is_one():
    """What errors tell users to install exists."""
    assert set(EXTRAS) <= set(PROJECT["project"]["optional-dependencies"])


def test_commit_hooks_are_the_development_tools():
    """The local hooks call what `make setup` installs, not versions of their own."""
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    local = [hook for repo in hooks["repos"] if repo["repo"] == "local" for hook in repo["hooks"]]
    tools = {hook["entry"].split()[0].removeprefix(".venv/bin/") for hook in local}
    names = {Requirement(text).name for text in PROJECT["project"]["optional-dependencies"]["dev"]}
    assert {"ruff", "import-linter", "pytest"} <= names
    assert tools == {"ruff", "lint-imports", "python"}


def test_another_package_in_our_place_is_found_out(monkeypatch):
    """A foreign package called `baselines` is named, with its file, instead of hiding every system."""
    from importlib import metadata

    stranger = SimpleNamespace(__file__="site-packages/baselines/__init__.py")
    point = SimpleNamespace(name="baselines", load=lambda: stranger)
    others = [p for p in entry_points(group=GROUP) if p.name != "baselines"]
    monkeypatch.setattr(metadata, "entry_points", lambda group: [*others, point])
    tables.cache_clear()
    try:
        with pytest.raises(ConfigError, match=r"site-packages/baselines/__init__.py has none of"):
            table(TABLES[0])
    finally:
        tables.cache_clear()
