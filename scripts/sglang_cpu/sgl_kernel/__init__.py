"""Stands in for SGLang's kernel package, of which no CPU build is on the package index.

SGLang's CPU platform imports names from here, and for plain decoding of a dense model on a CPU
without AMX it calls none of them: each operation has a form in PyTorch. One that is called all
the same says so.
"""

from __future__ import annotations

from typing import Any, NoReturn

__version__ = "0.0.0+marsbench"


def __getattr__(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)

    def missing(*_: Any, **__: Any) -> NoReturn:
        raise NotImplementedError(f"sgl_kernel.{name}: this stand-in for CPUs has no such kernel")

    return missing
