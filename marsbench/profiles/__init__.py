"""Hardware profiles that come with marsbench; ``marsbench.engine.profile`` reads them."""

from __future__ import annotations

from pathlib import Path

PROFILES = Path(__file__).resolve().parent
"""A profile's name is its path below this folder without the suffix."""


def list_profiles() -> list[str]:
    """Names of the shipped profiles."""
    return sorted(
        path.relative_to(PROFILES).with_suffix("").as_posix() for path in PROFILES.rglob("*.yaml")
    )
