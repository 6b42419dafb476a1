"""Published evaluations: every part is an experiment that can be run, every range has a source."""

from __future__ import annotations

import pytest

from marsbench import registry
from marsbench.config import load_config
from marsbench.engine.profile import load_profile
from marsbench.errors import ConfigError
from marsbench.experiment import study as studies
from marsbench.experiment.study import load_study
from marsbench.experiment.sustained import for_search
from marsbench.experiment.tuning import resolve


def test_every_part_is_an_experiment_that_can_be_run():
    """Names of systems, profiles and workloads exist; what is searched has an objective; each range
    is over systems that its part runs, beside the subject.
    """
    for name in registry.table("STUDIES"):
        study = load_study(name)
        for part in study.parts:
            config = load_config([study.file(part)])
            assert study.subject in config.system
            for system in config.system:
                resolve(system)
            for profile in config.profile:
                load_profile(profile)
            if not study.parts[part].trace:
                assert set(config.workload) <= set(registry.table("WORKLOADS"))
            if config.sustain is not None:
                for_search(config)
        for one in study.published:
            config = load_config([study.file(one.part)])
            assert set(one.over) <= set(config.system), one.claim
            assert len(one.source.split()) > 1
            if one.from_load:
                assert max(config.load) >= one.from_load


@pytest.fixture
def written(tmp_path, monkeypatch):
    """written(text) -> the study of a file with that text."""

    def read(text):
        (tmp_path / "study.yaml").write_text(text)
        monkeypatch.setattr(studies, "table", lambda kind: {"s": "x"})
        monkeypatch.setattr(studies, "load", lambda kind, name: str(tmp_path / "study.yaml"))
        load_study.cache_clear()
        try:
            return load_study("s")
        finally:
            load_study.cache_clear()

    return read


PARTS = "summary: s\nsubject: mars\nparts: {main: {shows: x, experiment: main.yaml}}\n"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("summary: s\nsubject: mars\nparts: {}\n", "parts: "),
        (PARTS + "extra: 1\n", "extra: "),
        (PARTS + "published: [{part: min, claim: c, measure: mean_s, over: [a], high: 2, source: s}]\n",
         "is of part 'min', which is no part"),
        ("summary: [\n", "cannot be read as a study"),
    ],
)  # fmt: skip
def test_a_study_that_is_not_sound_is_one_line(written, text, line):
    """The file, the key and what is wrong."""
    with pytest.raises(ConfigError, match=r"study\.yaml") as caught:
        written(text)
    assert line in str(caught.value)


def test_files_lie_beside_the_study(written, tmp_path):
    """A part's experiment is found from the study's own folder."""
    assert written(PARTS).file("main") == tmp_path / "main.yaml"
    with pytest.raises(ConfigError, match="unknown study"):
        load_study("none")
