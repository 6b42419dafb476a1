"""A published evaluation as experiments: its parts, and the ranges that it reports for them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from marsbench.errors import ConfigError
from marsbench.registry import load, table, unknown
from marsbench.report.published import PublishedRange
from marsbench.strict_yaml import load_yaml


class StudyPart(BaseModel):
    """One table or figure of an evaluation."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    shows: str
    experiment: str
    """Experiment file, beside the study's own."""
    trace: bool = False
    """Replays a recorded trace, which whoever repeats the study brings."""
    optional: bool = False
    """Needs what not every machine has, such as a real server."""


class PublishedStudy(BaseModel):
    """An evaluation; ``folder`` is where its files lie."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    summary: str
    subject: str
    """The system whose factors over others are reported."""
    parts: Mapping[str, StudyPart] = Field(min_length=1)
    published: tuple[PublishedRange, ...] = ()
    folder: Path = Path()

    @model_validator(mode="after")
    def _parts_exist(self) -> PublishedStudy:
        for one in self.published:
            if one.part not in self.parts:
                raise ValueError(
                    f"published: {one.claim!r} is of part {one.part!r}, which is no part"
                )
        return self

    def file(self, part: str) -> Path:
        """Return the experiment file of a part."""
        return self.folder / self.parts[part].experiment


@cache
def load_study(name: str) -> PublishedStudy:
    """Load the study called ``name``.

    Raises ConfigError for an unknown name or a study that is not sound.
    """
    if name not in table("STUDIES"):
        raise unknown("study", name, table("STUDIES"))
    file = Path(load("STUDIES", name))
    try:
        content = load_yaml(file.read_text(encoding="utf-8"))
        return PublishedStudy.model_validate({**content, "folder": file.parent})
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"{file}: cannot be read as a study: {error}") from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise ConfigError(
            f"{file}: {where}: {first['msg'].removeprefix('Value error, ')}"
        ) from error
