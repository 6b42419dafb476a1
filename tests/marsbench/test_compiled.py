"""The compiled core is used as it was built, or not at all."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest

from marsbench import compiled
from marsbench.cli.doctor import examine
from marsbench.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def folder(tmp_path):
    """A folder that passes every check; its binaries are empty."""
    for name in (*compiled.MODULES, compiled.LIBRARY):
        path = compiled.binary(tmp_path, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / compiled.MANIFEST).write_text(json.dumps(compiled.manifest()))
    return tmp_path


def test_modules_come_from_the_folder(folder):
    """Compiled modules and their library are found in the folder; all others are left alone."""
    core = compiled.CompiledCore(folder)
    for name in (*compiled.MODULES, compiled.LIBRARY):
        assert Path(core.find_spec(name, None).origin) == compiled.binary(folder, name)
    assert core.find_spec("marsbench.engine.base", None) is None


def change_source(folder):
    content = compiled.manifest() | {"source_sha256": "0" * 64}
    (folder / compiled.MANIFEST).write_text(json.dumps(content))


def change_python(folder):
    content = compiled.manifest() | {"python": "cpython-399"}
    (folder / compiled.MANIFEST).write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (lambda f: (f / compiled.MANIFEST).unlink(), "no compiled core there"),
        (lambda f: (f / compiled.MANIFEST).write_text("{"), "no compiled core there"),
        (change_source, "compiled from other sources"),
        (change_python, "compiled for cpython-399"),
        (lambda f: compiled.binary(f, compiled.MODULES[0]).unlink(), "binary of .* is missing"),
    ],
)
def test_a_stale_or_broken_folder_is_an_error(folder, spoil, problem):
    """No import falls back to Python or takes a binary that is not the sources'."""
    spoil(folder)
    with pytest.raises(ConfigError, match=problem):
        compiled.CompiledCore(folder).find_spec("marsbench.engine.driver", None)


def test_live_servers_are_refused(folder):
    """The live driver extends the driver, which a compiled one does not allow: said beforehand."""
    with pytest.raises(ConfigError, match="unset it for live servers"):
        compiled.CompiledCore(folder).find_spec(compiled.LIVE, None)


def test_every_source_file_changes_the_hash(tmp_path, monkeypatch):
    """One changed byte in any module the compiler saw makes a folder stale."""
    package = tmp_path / "marsbench"
    sources = [package.parent.joinpath(*name.split(".")).with_suffix(".py")
               for name in (*compiled.MODULES, *compiled.INTERFACES)]  # fmt: skip
    for path in sources:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("one")
    monkeypatch.setattr(compiled, "__file__", str(package / "compiled.py"))
    seen = {compiled.source_sha256()}
    for path in sources:
        path.write_text("two")
        seen.add(compiled.source_sha256())
    assert len(seen) == 1 + len(sources)


def test_the_hash_covers_what_the_compiler_sees():
    """Compiled modules and interfaces import nothing of marsbench but each other."""
    known = {*compiled.MODULES, *compiled.INTERFACES}
    imported = set()
    for name in known:
        text = ROOT.joinpath(*name.split(".")).with_suffix(".py").read_text(encoding="utf-8")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("marsbench"):
                imported.add(node.module)
            if isinstance(node, ast.Import):
                imported |= {a.name for a in node.names if a.name.startswith("marsbench")}
    assert imported <= known
    assert set(compiled.INTERFACES) <= imported


def test_only_the_environment_turns_it_on(monkeypatch, tmp_path):
    """Without the variable nothing changes; with it, the folder is taken from where it points."""
    monkeypatch.delenv(compiled.VARIABLE, raising=False)
    assert compiled.named_folder() is None
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(compiled.VARIABLE, "there")
    assert compiled.named_folder() == tmp_path / "there"


def test_doctor_says_which_core_runs(monkeypatch, folder):
    """Pure Python, a compiled core that may be used, or one that is broken, with the remedy."""
    monkeypatch.delenv(compiled.VARIABLE, raising=False)
    assert "pure Python" in next(f.text for f in examine() if f.topic == "core")
    monkeypatch.setenv(compiled.VARIABLE, str(folder))
    assert next(f.text for f in examine() if f.topic == "core") == f"compiled, {folder}"
    change_source(folder)
    *_, last = examine()
    assert (last.topic, last.state) == ("core", "broken")
    assert "run scripts/compile_core.py" in last.text
