"""What a module depends on is found in its source, without importing it."""

from __future__ import annotations

import sys

import pytest

from marsbench.sources import depends_on, path_of


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package whose modules import each other in every way."""
    folder = tmp_path / "closure_example"
    (folder / "inner").mkdir(parents=True)
    texts = {
        "__init__": "",
        "top": "from closure_example import direct\nimport closure_example.inner.deep\nimport json\n",
        "direct": "def late():\n    from closure_example.inside import name\n",
        "inside": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n"
        "    from closure_example.shape import Shape\n",
        "shape": "",
        "unrelated": "from closure_example import top\n",
        "inner/__init__": "",
        "inner/deep": "from closure_example.direct import late\n",
    }
    for name, text in texts.items():
        (folder / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    return "closure_example"


def test_closure(package):
    """Modules, names in modules, submodules and imports inside functions; nothing that only imports
    the module, nothing of other packages, and types only when they are asked for.
    """
    found = {f"{package}.{name}" for name in ("top", "direct", "inside", "inner.deep")}
    assert set(depends_on([f"{package}.top"])) == found
    assert set(depends_on([f"{package}.top"], types=True)) == found | {f"{package}.shape"}
    assert f"{package}.top" not in sys.modules


def test_path_of():
    """A module, a package, and None for what is no module."""
    assert path_of("marsbench.sources").name == "sources.py"
    assert path_of("marsbench.engine").name == "__init__.py"
    assert path_of("marsbench.sources.depends_on") is None
    assert path_of("no_such_package.module") is None
