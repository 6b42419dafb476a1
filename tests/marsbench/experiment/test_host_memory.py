"""Host memory as a dimension of an experiment: keys, tables and metrics where there is some, none else."""

from __future__ import annotations

import json

import pandas as pd
import pyarrow.parquet as pq
import pytest

from marsbench.config import ExperimentConfig, config_digest, dump_config
from marsbench.errors import ConfigError
from marsbench.events import HOST_KINDS
from marsbench.experiment.cells import grid
from marsbench.report.data import load_runs

SCARCE = {"num_blocks": 1200, "max_model_len": 19000}
HOST_ONLY = ("gpu_hit_rate", "host_hit_rate", "stored_bytes", "loaded_bytes", "host_kv_utilisation")


def test_host_memory_spans_the_grid():
    """Every size of host memory is a cell of its own; without any there is one cell."""
    assert [c.point.host_kv_gib for c in grid(ExperimentConfig(host_kv_gib=(0, 16)))] == [0, 16]
    assert len(grid(ExperimentConfig())) == 1
    assert "16 GiB host" in grid(ExperimentConfig(host_kv_gib=16))[0].describe()


def test_an_experiment_without_host_memory_is_named_as_ever():
    """None and 0 are the same experiment; a size is another one, and its file repeats it."""
    plain = ExperimentConfig()
    assert config_digest(plain) == config_digest(ExperimentConfig(host_kv_gib=0))
    assert "host_kv_gib" not in dump_config(plain)
    assert config_digest(plain) != config_digest(ExperimentConfig(host_kv_gib=16))
    assert "host_kv_gib" in dump_config(ExperimentConfig(host_kv_gib=16))


def test_cells_say_their_host_memory_and_what_it_did(run):
    """The key, the parts of latency, the tables and the metrics of both kinds of cells."""
    params = {"vllm": SCARCE}
    result, _ = run(host_kv_gib=[0, 2], params=params, rate_per_s=[3.0], load=[])
    without, having = result.summary["cells"]
    assert (without["host_kv_gib"], having["host_kv_gib"]) == (0.0, 2.0)
    assert not any(name in without["metrics"] for name in HOST_ONLY)
    metrics = having["metrics"]
    assert metrics["stored_bytes"] > 0
    assert metrics["loaded_bytes"] > 0
    assert metrics["gpu_hit_rate"] + metrics["host_hit_rate"] == pytest.approx(
        metrics["prefix_cache_hit_rate"]
    )
    assert 0 < metrics["host_kv_utilisation"] < 1.001
    assert 0 < metrics["load_link_utilisation"] < 1
    for cell in (without, having):
        parts = cell["metrics"]["latency_breakdown_s"]
        assert sum(parts.values()) == pytest.approx(cell["metrics"]["session_latency_s"]["mean"])
    assert without["metrics"]["latency_breakdown_s"]["load"] == 0
    assert metrics["latency_breakdown_s"]["load"] > 0
    turns = pd.read_parquet(result.folder / "turns.parquet")
    loaded = turns.groupby("host_kv_gib")["loaded_tokens"].sum()
    assert loaded[0.0] == 0
    assert loaded[2.0] > 0
    assert set(load_runs([result.folder]).cells["profile"]) == {
        having["profile"], f"{having['profile']} with 2 GiB of host memory"
    }  # fmt: skip


def test_results_without_host_memory_do_not_know_of_it(run):
    """Neither the summary nor a table has a trace of host memory if no cell has any."""
    result, _ = run(host_kv_gib=[0])
    (cell,) = result.summary["cells"]
    assert "host_kv_gib" not in cell
    assert "load" not in cell["metrics"]["latency_breakdown_s"]
    for name in ("sessions", "turns"):
        columns = set(pq.read_schema(result.folder / f"{name}.parquet").names)
        assert not columns & {"host_kv_gib", "load_s", "loaded_tokens"}
    payload = json.loads(pq.read_schema(result.folder / "events.parquet").metadata[b"payload"])
    assert not set(payload) & {kind.name for kind in HOST_KINDS}


def test_more_than_the_server_has_is_refused(run):
    """A profile says how much host memory there is per GPU, and the error line says it too."""
    with pytest.raises(ConfigError, match="256 GiB of host memory per GPU"):
        run(host_kv_gib=[300])


def test_a_profile_without_a_link_is_refused(run):
    """Nothing is assumed of a link that a profile does not state."""
    with pytest.raises(ConfigError, match="no `host` block"):
        run(profile=["small-cpu"], host_kv_gib=[1])
