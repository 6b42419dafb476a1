"""Experiments: layers of files, flags and key=value pairs, and the one line for each mistake."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from marsbench.config import ExperimentConfig, config_digest, dump_config, load_config
from marsbench.errors import ConfigError
from marsbench.tools.base import ToolAssumptions


def test_later_layers_win(tmp_path):
    """Defaults, files from left to right, flags, key=value: each may overrule those before it."""
    base, over = tmp_path / "base.yaml", tmp_path / "over.yaml"
    base.write_text("sessions: 10\nseeds: 2\ntool_cores: 4\nload: [0.5, 0.9]\n")
    over.write_text("sessions: 20\nseeds: 3\n")
    config = load_config([base, over], flags={"seeds": 4}, overrides=["tool_cores=[0, 8]"])
    assert (config.sessions, config.seeds, config.tool_cores) == (20, 4, (0, 8))
    assert config.load == (0.5, 0.9)


def test_blocks_merge_and_lists_replace(tmp_path):
    """A block keeps the keys the stronger layer does not name; a list is replaced whole."""
    base = tmp_path / "base.yaml"
    base.write_text("engine: {name: sim, params: {block_size: 32}}\nsystem: [vllm, mars]\n")
    config = load_config(
        [base], flags={"engine": "vllm-core"}, overrides=["engine.params.num_blocks=9"]
    )
    assert config.engine.name == "vllm-core"
    assert config.engine.params == {"block_size": 32, "num_blocks": 9}
    assert load_config([base], flags={"system": ["vllm"]}).system == ("vllm",)


def test_one_value_is_a_list_of_one():
    """``load: 0.9`` and ``load: [0.9]`` are the same experiment."""
    assert load_config(overrides=["load=0.9"]) == load_config(overrides=["load=[0.9]"])


def test_default_load_only_where_a_rate_is_needed():
    """Without load and rate: load 0.9, but a closed loop or recorded times keep their pace."""
    assert load_config().load == (0.9,)
    assert load_config(flags={"rate_per_s": [0.1]}).load == ()
    assert load_config(flags={"arrival": "closed"}).load == ()
    assert load_config(overrides=["arrival.name=trace"]).load == ()


@given(
    sessions=st.integers(1, 10**6),
    loads=st.lists(st.floats(0.01, 10), min_size=1, max_size=4, unique=True),
    flags=st.dictionaries(st.text("abc_", min_size=1), st.integers() | st.booleans(), max_size=3),
)
def test_resolved_config_loads_to_itself(tmp_path_factory, sessions, loads, flags):
    """What is written into the run folder is the experiment, for any values."""
    config = ExperimentConfig(
        sessions=sessions, load=tuple(loads), engine={"name": "sim", "params": flags}
    )
    path = tmp_path_factory.mktemp("run") / "config.yaml"
    path.write_text(dump_config(config), encoding="utf-8")
    again = load_config([path])
    assert again == config
    assert config_digest(again) == config_digest(config)


def test_shell_timeout_is_the_tool_models_own():
    """The experiment's default timeout is the one the tool model assumes."""
    assert load_config().tools.shell_timeout_s == ToolAssumptions().shell_timeout_s


@pytest.mark.parametrize(
    ("flags", "overrides", "line"),
    [
        ({"sessions": 0}, [], "command line: sessions: input should be greater than or equal to 1"),
        ({}, ["enginee=1"], "-c enginee=1: unknown key 'enginee'; did you mean 'engine'?"),
        ({}, ["engine.foo=1"], "unknown key 'engine.foo' (known: name, params)"),
        ({}, ["cut.warmup=1"], "unknown key 'cut.warmup'; did you mean 'warmup_s'?"),
        ({}, ["sessions=many"], "-c sessions=many: sessions: input should be a valid integer"),
        ({}, ["load=-1"], "load.0: input should be greater than 0 (got -1)"),
        ({}, ["load=.nan"], "load.0: input should be a finite number"),
        ({}, ["split=half"], "split: input should be 'all', 'tuning' or 'reporting'"),
        ({}, ["tool_cores=[4, 4]"], "tool_cores: 4 is given twice; name it once"),
        ({}, ["params.mars.window=4"], "params.mars: no such system in this experiment"),
        ({}, ["workload=[]"], "workload: "),
        ({}, ["sessions"], "-c sessions: expected key=value, for example"),
        ({}, ["load=[1"], "-c load=[1: the value is not valid YAML"),
    ],
)
def test_mistakes_are_one_line(flags, overrides, line):
    """Every mistake names its origin and key and says what would be right, in one line."""
    with pytest.raises(ConfigError) as caught:
        load_config(flags=flags, overrides=overrides)
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b"", "an experiment is a mapping of keys, found nothing"),
        (b"- a\n", "an experiment is a mapping of keys, found list"),
        (b"load: [1\n", "x.yaml:2: not valid YAML"),
        (b"load: 1\nload: 2\n", "x.yaml:2: not valid YAML: key 'load' is given twice"),
        (b"\xff\xfe\x00", "cannot be read as a YAML experiment"),
        (b"sessions: 0\n", "x.yaml: sessions: "),
    ],
)
def test_bad_files_are_one_line(tmp_path, content, line):
    """A file that is no experiment is named, with the line where there is one."""
    path = tmp_path / "x.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load_config([path])
    assert line in str(caught.value)
    assert str(path) in str(caught.value)


def test_missing_file_is_named(tmp_path):
    """A file that is not there is a mistake, not an empty experiment."""
    with pytest.raises(ConfigError, match="no such experiment file"):
        load_config([tmp_path / "none.yaml"])


@pytest.mark.parametrize(
    ("flags", "split"),
    [
        ({}, "all"),
        ({"system": ["vllm", "mars"]}, "all"),
        ({"system": "vllm-tuned"}, "reporting"),
        ({"system": ["vllm", "static-tuned"]}, "reporting"),
        ({"system": ["vllm-tuned"], "split": "all"}, "all"),
        ({"split": "tuning"}, "tuning"),
    ],
)
def test_half_of_the_sessions_is_kept_back_only_for_tuning(flags, split):
    """Every session is replayed unless parameters were tuned on half of them, or the user says so."""
    config = load_config(flags=flags)
    assert config.split == split
    assert load_config(flags=config.model_dump(mode="json")) == config


def test_live_agents_have_defaults_of_their_own():
    """What is left unsaid with live agents fits them; what is said stays, in any form."""
    config = load_config(flags={"driver": "openhands", "sessions": 3})
    assert (config.engine.name, config.workload) == ("vllm", ("tasks",))
    assert (config.arrival.name, config.arrival.params) == ("closed", {"n": 3})
    assert config.load == ()
    named = load_config(
        flags={"driver": "openhands", "rate_per_s": [0.5]},
        overrides=["driver.params.brain=model"],
    )
    assert (named.driver.name, named.driver.params) == ("openhands", {"brain": "model"})
    assert (named.arrival.name, named.rate_per_s) == ("poisson", (0.5,))
