"""How to get an extra: right for a clone, for what pip was given, and for a release."""

from __future__ import annotations

import json
import re
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

from marsbench import extras
from marsbench.errors import ConfigError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def installed(monkeypatch, tmp_path):
    """``installed(**direct_url)``: as if pip had put marsbench into a site-packages (PEP 610)."""

    class Distribution:
        def __init__(self, record):
            self.record = record

        def read_text(self, name):
            assert name == "direct_url.json"
            return json.dumps(self.record) if self.record else None

    def install(**record):
        monkeypatch.setattr(extras, "SOURCES", tmp_path / "site-packages")
        monkeypatch.setattr(metadata, "distribution", lambda _name: Distribution(record))

    return install


@pytest.fixture
def clone(tmp_path):
    """A folder that pip can install marsbench from."""
    folder = tmp_path / "a clone"
    (folder / "marsbench").mkdir(parents=True)
    (folder / "pyproject.toml").touch()
    return folder


def test_a_clone_is_installed_again_where_it_lies(monkeypatch, tmp_path):
    """From inside the folder by a dot, from elsewhere by its path, quoted for a shell."""
    monkeypatch.chdir(ROOT)
    assert extras.how_to_install("ray") == "pip install -e '.[ray]'"
    monkeypatch.chdir(tmp_path)
    assert extras.how_to_install("ray") == f"pip install -e '{ROOT}[ray]'"


def test_a_release_is_looked_up_in_the_index(installed):
    """What pip found by its name, it finds by its name again."""
    installed()
    assert extras.how_to_install("live") == "pip install 'marsbench[live]'"


def test_what_pip_was_given_is_given_again(installed, clone):
    """A folder, as long as it is there; a repository at the commit that is installed; an archive."""
    installed(url=clone.as_uri(), dir_info={})
    assert extras.how_to_install("live") == f"pip install '{clone}[live]'"
    (clone / "pyproject.toml").unlink()
    assert extras.how_to_install("live") == "pip install 'marsbench[live]'"
    installed(url="https://host/repo.git", vcs_info={"vcs": "git", "commit_id": "abc"})
    assert (
        extras.how_to_install("live")
        == "pip install 'marsbench[live] @ git+https://host/repo.git@abc'"
    )
    installed(url="file:///tmp/marsbench-1-py3-none-any.whl", archive_info={})
    assert (
        extras.how_to_install("live")
        == "pip install 'marsbench[live] @ file:///tmp/marsbench-1-py3-none-any.whl'"
    )


def test_what_needs_an_extra_says_how_to_get_it(monkeypatch):
    """One line: what needs which modules, and the command."""
    monkeypatch.setattr(extras, "find_spec", lambda name: None if name == "zmq" else object())
    with pytest.raises(ConfigError) as raised:
        extras.require("live", "watch")
    command = extras.how_to_install("live")
    assert str(raised.value) == f"watch needs zmq, not installed here: {command}"


def test_no_message_has_a_hint_of_its_own():
    """The command stands in ``extras`` alone: code calls it, pages that are read in a clone say '.[x]'."""
    named = re.compile(r"pip install\s+['\"]?marsbench\[")
    own = {ROOT / "marsbench" / "extras.py", Path(__file__)}
    paths = [
        path
        for folder in (
            "marsbench",
            "workloads",
            "baselines",
            "mars_impl",
            "scripts",
            "docs",
            "deploy",
        )
        for path in (ROOT / folder).rglob("*")
        if path.suffix in {".py", ".md", ".sh", ".yaml"}
    ]
    found = [
        str(path)
        for path in [*paths, *ROOT.glob("*.md")]
        if path not in own and named.search(path.read_text())
    ]
    assert len(paths) > 300
    assert found == []


def test_extras_are_those_of_the_distribution():
    """The modules that doctor looks for are what the distributions of each extra install."""
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    for extra, (_, modules) in extras.EXTRAS.items():
        names = {re.split(r"[<>=\[]", requirement)[0] for requirement in declared[extra]}
        known = {
            "pyzmq": "zmq",
            "prometheus-client": "prometheus_client",
            "opentelemetry-sdk": "opentelemetry.sdk",
            "opentelemetry-exporter-otlp-proto-http": "opentelemetry.exporter.otlp.proto.http",
        }
        assert {known.get(name, name) for name in names} == set(modules), extra
