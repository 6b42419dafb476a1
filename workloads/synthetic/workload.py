"""Generated profiles and mixes of them as workloads, with seeds that do not depend on how many.

The generator and the check of profiles are imported when sessions are drawn: whoever only lists
workloads does not wait for numpy, scipy and pydantic.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from marsbench.core import Session
from marsbench.errors import ConfigError
from marsbench.registry import unknown, yaml_summary
from marsbench.trace.workload import SPLITS
from workloads.synthetic.shipped import shipped

if TYPE_CHECKING:
    import numpy as np

    from workloads.synthetic.generator import Generator
    from workloads.synthetic.profile import Mix, SessionProfile

DEFAULT_SESSIONS = 100


class GeneratedWorkload:
    """Sessions drawn from one profile (a shipped name, or the path of a YAML file)."""

    def __init__(self, profile: str | Path, **changes: Any) -> None:
        self._path = profile if isinstance(profile, Path) else None
        self.name = profile.stem if isinstance(profile, Path) else profile
        self._changes = changes

    @property
    def summary(self) -> str:
        return yaml_summary(self._path or shipped(self.name))

    @property
    def provenance(self) -> Mapping[str, str]:
        return self.profile.provenance

    @cached_property
    def profile(self) -> SessionProfile:
        """The parameters, read on first use."""
        from pydantic import ValidationError

        from workloads.synthetic.profile import SessionProfile, load_profile

        profile = load_profile(self._path or shipped(self.name))
        if not self._changes:
            return profile
        try:
            return SessionProfile.model_validate(profile.model_dump() | self._changes)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise ConfigError(f"workload {self.name!r}: {where}: {first['msg']}") from error

    @cached_property
    def generator(self) -> Generator:
        """The generator of the profile, with its tables."""
        from workloads.synthetic.generator import Generator

        return Generator(self.profile)

    def variant(self, **changes: Any) -> GeneratedWorkload:
        """Return the same workload with whole blocks of its profile replaced, for instance
        ``sandbox_speed=0.5``.
        """
        return GeneratedWorkload(self._path or self.name, **(self._changes | changes))

    def sessions(self, num: int | None, seed: int, split: str = "all") -> list[Session]:
        """See ``Workload.sessions``."""
        return [
            self.generator.session(f"{self.name}-{seed}-{index}", session_seed(seed, index))
            for index in indices(num, seed, split)
        ]


class MixedWorkload:
    """Sessions of several profiles, drawn by weight."""

    def __init__(self, mix: str | Path) -> None:
        self._path = mix if isinstance(mix, Path) else None
        self.name = mix.stem if isinstance(mix, Path) else mix

    @property
    def summary(self) -> str:
        return yaml_summary(self._path or shipped(self.name))

    @property
    def provenance(self) -> Mapping[str, str]:
        return self.mix.provenance

    @cached_property
    def mix(self) -> Mix:
        """The components, read on first use."""
        from workloads.synthetic.profile import load_mix

        return load_mix(self._path or shipped(self.name))

    @cached_property
    def parts(self) -> tuple[GeneratedWorkload, ...]:
        """The workload of each component."""
        return tuple(GeneratedWorkload(part.profile) for part in self.mix.components)

    def sessions(self, num: int | None, seed: int, split: str = "all") -> list[Session]:
        """See ``Workload.sessions``; a session's component depends on (seed, index) only."""
        import numpy as np

        edges = np.cumsum([part.weight for part in self.mix.components])
        sessions: list[Session] = []
        for index in indices(num, seed, split):
            source = session_seed(seed, index)
            uniform = np.random.Generator(np.random.PCG64(source.spawn(1)[0])).random()
            row = min(int(np.searchsorted(edges, uniform * edges[-1], "right")), len(edges) - 1)
            part = self.parts[row]
            session_id = f"{self.name}-{seed}-{index}/{part.name}"
            sessions.append(part.generator.session(session_id, source.spawn(1)[0]))
        return sessions


def indices(num: int | None, seed: int, split: str) -> range:
    """Return the stream numbers of a split: tuning has the even ones, reporting the odd ones, all
    has both.

    Session i of a split is the same however many are asked for, and no session is in both halves.
    """
    if split not in SPLITS:
        raise unknown("split", split, SPLITS)
    if seed < 0:
        raise ConfigError(f"seed {seed}: give a number that is not negative")
    count = DEFAULT_SESSIONS if num is None else num
    if count < 1:
        raise ConfigError(f"{count} sessions: ask for at least one")
    if split == "all":
        return range(count)
    return range(0 if split == "tuning" else 1, 2 * count, 2)


def session_seed(seed: int, index: int) -> np.random.SeedSequence:
    """Return the random source of one session."""
    import numpy as np

    return np.random.SeedSequence(entropy=seed, spawn_key=(index,))
