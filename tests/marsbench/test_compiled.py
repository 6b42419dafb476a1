"""The compiled core is used as it was built, or not at all."""

from __future__ import annotations

import ast
import json
from fractions import Fraction
from pathlib import Path

import pytest

from marsbench import compiled
from marsbench.cli.doctor import examine
from marsbench.core import PS_PER_S, to_s
from marsbench.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def folder(tmp_path):
    """A folder that passes every check; its binaries are empty."""
    for name in (*compiled.modules(), compiled.LIBRARY):
        path = compiled.binary(tmp_path, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / compiled.MANIFEST).write_text(json.dumps(compiled.manifest()))
    return tmp_path


def test_modules_come_from_the_folder(folder):
    """Compiled modules and their library are found in the folder; all others are left alone."""
    core = compiled.CompiledCore(folder)
    for name in (*compiled.modules(), compiled.LIBRARY):
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
        (lambda f: compiled.binary(f, compiled.modules()[0]).unlink(), "binary of .* is missing"),
    ],
)
def test_a_stale_or_broken_folder_is_an_error(folder, spoil, problem):
    """No import falls back to Python or takes a binary that is not the sources'."""
    spoil(folder)
    with pytest.raises(ConfigError, match=problem):
        compiled.CompiledCore(folder).find_spec("marsbench.engine.loop", None)


def test_every_source_file_changes_the_hash(tmp_path, monkeypatch):
    """One changed byte in any module the compiler saw makes a folder stale."""
    names = (*compiled.modules(), *compiled.interfaces())
    sources = {name: tmp_path / name for name in names}
    for path in sources.values():
        path.write_text("one")
    monkeypatch.setattr(compiled, "path_of", sources.get)
    seen = {compiled.source_sha256()}
    for path in sources.values():
        path.write_text("two")
        seen.add(compiled.source_sha256())
    assert len(seen) == 1 + len(sources)


def test_the_hash_covers_what_the_compiler_sees():
    """Compiled modules and interfaces import nothing of marsbench but each other."""
    known = {*compiled.modules(), *compiled.interfaces()}
    imported = set()
    for name in known:
        text = ROOT.joinpath(*name.split(".")).with_suffix(".py").read_text(encoding="utf-8")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("marsbench"):
                imported.add(node.module)
            if isinstance(node, ast.Import):
                imported |= {a.name for a in node.names if a.name.startswith("marsbench")}
    assert imported <= known
    assert set(compiled.interfaces()) <= imported


def test_the_loop_is_compiled_and_data_is_not():
    """Batching, memory and the clock's loop are compiled; what crosses processes or is only a shape
    is not, and neither is anything outside the engine and its tools.
    """
    for name in (
        "engine.loop",
        "engine.life",
        "engine.sim.batch",
        "engine.sim.kv",
        "tools.modelled",
    ):
        assert f"marsbench.{name}" in compiled.modules()
    for name in ("engine.plan", "engine.base", "tools.executor", "tools.base", "core", "records"):
        assert f"marsbench.{name}" in compiled.interfaces()


def is_picoseconds(node):
    """An operand that is named as one: ``PS_PER_S``, ``now_ps``, ``turn.ready_ps``, ``to_ps(x)``."""
    if isinstance(node, ast.Call):
        node = node.func
    name = getattr(node, "attr", getattr(node, "id", ""))
    return name == "PS_PER_S" or name.endswith("_ps")


def picosecond_divisions(source):
    """Lines on which a true division has picoseconds on either side."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
            sides = [*ast.walk(node.left), *ast.walk(node.right)]
        elif isinstance(node, ast.AugAssign) and isinstance(node.op, ast.Div):
            sides = [node.target, *ast.walk(node.value)]
        else:
            continue
        if any(is_picoseconds(side) for side in sides):
            found.append(node.lineno)
    return sorted(found)


def test_a_quotient_of_doubles_is_not_the_quotient():
    """From 2^53 ps on, as the compiler divides, seconds come out one rounding off; not ``to_s``."""
    # 2^53 + 3 is odd, so a double holds 2^53 + 4 instead. Of the 500 clocks, some differ.
    clocks = range(2**53 + 3, 2**53 + 1_003, 2)
    assert any(float(ps) / float(PS_PER_S) != to_s(ps) for ps in clocks)
    assert all(to_s(ps) == float(Fraction(ps, PS_PER_S)) for ps in clocks)
    assert all(float(ps) / float(PS_PER_S) == to_s(ps) for ps in range(2**53 - 1_000, 2**53 + 1))


def test_compiled_modules_leave_picoseconds_to_python():
    """No compiled module divides picoseconds itself, and what they call to do it is not compiled."""
    assert picosecond_divisions("now_s = self.now_ps / PS_PER_S\nleft_s /= PS_PER_S") == [1, 2]
    found = {}
    for name in compiled.modules():
        text = ROOT.joinpath(*name.split(".")).with_suffix(".py").read_text(encoding="utf-8")
        found[name] = picosecond_divisions(text)
    assert not any(found.values()), f"use marsbench.core.to_s: {found}"
    assert to_s.__module__ not in compiled.modules()


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
