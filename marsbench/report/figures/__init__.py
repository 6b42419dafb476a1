"""Figures: one file each, drawn by ``marsbench report``; a new file here is a new figure.

A figure's module docstring is the question it answers. ``draw(data)`` gets the cells of one
scenario and returns a ``Chart``, or None if the cells do not have what it shows. It draws nothing
itself: one description serves the files and the page.
"""

from __future__ import annotations

import pkgutil

FIGURES = {info.name: f"{__name__}.{info.name}.draw" for info in pkgutil.iter_modules(__path__)}
"""Dotted path of each figure's ``draw`` by name."""
