"""The evaluation of MARS's paper as experiments, and what the paper reports, for ``marsbench reproduce``."""

from __future__ import annotations

from pathlib import Path

STUDY = Path(__file__).parent / "study.yaml"
"""Its parts, and the published ranges with their sources."""
