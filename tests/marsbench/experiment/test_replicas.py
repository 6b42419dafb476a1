"""Replicas as a dimension of the grid: keys, load, tables, metrics; one replica leaves no trace."""

from __future__ import annotations

import pandas as pd
import pytest

from marsbench.config import dump_config, load_config
from marsbench.errors import ConfigError
from marsbench.runfolder import read_table


def test_load_is_a_share_of_all_replicas_capacity(run):
    """Two replicas get twice the rate at the same load where tools are unlimited; each cell says how
    many it has, and only those with several have their metrics.
    """
    result, _ = run(replicas=[1, 2], tool_cores=[0], load=[0.5], system=["vllm@round-robin"])
    one, two = result.summary["cells"]
    assert (one["replicas"], two["replicas"]) == (1, 2)
    assert two["rate_per_s"] == pytest.approx(2 * one["rate_per_s"])
    assert "migrations" not in one["metrics"]
    assert two["metrics"]["migrations"] > 0
    assert 0 < two["metrics"]["migrated_turns_share"] <= 1
    assert 0 < two["metrics"]["jain_replicas"] <= 1
    busy = two["metrics"]["replica_gpu_utilisation"]
    assert 0 < busy["min"] <= busy["mean"] <= busy["max"] <= 1
    assert two["metrics"]["gpu_utilisation"] <= busy["max"]
    assert two["metrics"]["lost_kv_blocks"] == 0


def test_events_turns_and_sessions_say_where(run):
    """Round robin over two replicas: the turns table, the sessions table and every event of an engine
    agree with the ROUTE events.
    """
    result, _ = run(replicas=[2], system=["vllm@round-robin"])
    events, turns, sessions = (
        read_table(result.folder, n) for n in ("events", "turns", "sessions")
    )
    routes = events[events["kind"] == "ROUTE"]
    assert routes["a"].tolist() == [k % 2 for k in range(len(routes))]
    finished = events[events["kind"] == "GPU_END"]
    merged = turns.merge(
        finished[["session", "turn", "replica"]].rename(columns={"turn": "turn_index"}),
        on=["session", "turn_index"],
    )
    assert len(merged) == len(turns)
    assert (merged["replica_x"] == merged["replica_y"]).all()
    moved = routes[(routes["b"] >= 0) & (routes["a"] != routes["b"])].groupby("session").size()
    counted = sessions.set_index("session")["migrations"]
    pd.testing.assert_series_equal(
        counted[counted > 0], moved, check_names=False, check_dtype=False, check_index_type=False
    )
    assert (events[events["kind"] == "TOOL_START"]["replica"] == -1).all(), "tools are shared"
    stats = events[events["kind"] == "REPLICA_STATS"]
    assert set(stats["replica"]) == {0, 1}


def test_one_replica_leaves_no_trace(run):
    """Without several replicas the configuration, the summary and the tables are as ever."""
    result, _ = run()
    (cell,) = result.summary["cells"]
    assert "replicas" not in cell
    assert "replicas:" not in (result.folder / "config.yaml").read_text()
    assert "replica" not in read_table(result.folder, "events").columns
    assert "migrations" not in read_table(result.folder, "sessions").columns
    assert not {"ROUTE", "REPLICA_UP"} & set(read_table(result.folder, "events")["kind"])


def test_a_death_in_an_experiment_is_counted(run):
    """A replica that dies while sessions are active: all complete, its KV and the moves are counted."""
    events = [{"at_s": 3.0, "dies": 0}]
    given = {"replicas": [2], "system": ["vllm@session-affinity"], "rate_per_s": [2.0], "load": []}
    calm, _ = run("calm", **given)
    result, _ = run("death", **given, replica_events=events)
    assert calm.summary["cells"][0]["metrics"]["migrations"] == 0
    (cell,) = result.summary["cells"]
    assert cell["sessions"]["completed"] == cell["sessions"]["arrived"]
    assert cell["metrics"]["lost_kv_blocks"] > 0
    assert cell["metrics"]["migrations"] > 0
    again = load_config([result.folder / "config.yaml"])
    assert again.replica_events[0].dies == 0
    assert "replica_events" in dump_config(again)


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        ({"replicas": [0]}, "greater than or equal to 1"),
        ({"replicas": [2, 2]}, "replicas: 2 is given twice"),
        ({"replicas": [2], "engine": "sglang-core"}, "engine sglang-core runs one"),
        ({"replicas": [2], "host_kv_gib": [8]}, "host memory of several replicas is not modelled"),
        ({"replicas": [2], "system": ["vllm@lmetrik"]}, "did you mean 'lmetric'?"),
        ({"replicas": [2], "system": ["oracle"]}, "sees the future of one engine: --replicas 1"),
        ({"replica_events": [{"at_s": 1, "dies": 0}]}, "no cell has several replicas"),
        (
            {"replicas": [2], "replica_events": [{"at_s": 1, "dies": 2}]},
            "replica 2 dies, but of 2 there are [0, 1] then",
        ),
        (
            {"replicas": [2], "replica_events": [{"at_s": k, "dies": k} for k in (0, 1)]},
            "the last of 2 replicas dies; add one before",
        ),
    ],
)
def test_wrong_replicas_are_one_line(run, tmp_path, flags, line):
    """What, where and how to fix it, before anything runs."""
    with pytest.raises(ConfigError) as caught:
        run(**flags)
    assert line in str(caught.value)
    assert not (tmp_path / "run").exists()
