"""Lets the CUDA build of torchvision be imported beside a CPU build of PyTorch.

Its own registration of operators fails there, and then its first import does. A ``.pth`` file
runs this at the start of Python; it declares the two operators just before torchvision is loaded.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType

OPERATORS = ("nms", "qnms")


class DeclareOperators:
    """A finder that finds nothing, and acts once when torchvision is looked for."""

    def __init__(self) -> None:
        self._declared: object = None

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name == "torchvision" and self._declared is None:
            import torch

            operators = torch.library.Library("torchvision", "DEF")
            for operator in OPERATORS:
                operators.define(
                    f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
                )
            self._declared = operators  # they live as long as this object does
        return None


sys.meta_path.insert(0, DeclareOperators())
