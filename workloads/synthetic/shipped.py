"""Where the profiles that come with the generated workloads are; nothing is read or checked here."""

from __future__ import annotations

from pathlib import Path

from marsbench.errors import ConfigError

PROFILES = Path(__file__).with_name("profiles")


def shipped(name: str) -> Path:
    """Return the file of a profile that comes with the package."""
    path = PROFILES / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in PROFILES.glob("*.yaml")))
        raise ConfigError(f"no generated workload profile {name!r} (known: {known})")
    return path
