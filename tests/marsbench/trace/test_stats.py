"""Trace statistics against hand-computed sessions."""

from __future__ import annotations

import json

import numpy as np
import pytest

from marsbench.core import Session, SharedPrefix, ToolCall, Turn
from marsbench.trace.stats import SampledValues, collect_stats, compare_stats

PREFIX = SharedPrefix("sys", 100)


def two_sessions():
    """Two sessions with one shared prefix of 100 tokens.

    a: prompts 100+50=150, then 150+20 (verbatim output)+30=200.   reused: 100, 170
    b: prompts 100+10=110, then compaction to 100, +5 = 105.        reused: 100, 100
    """
    tools = (
        ToolCall("Bash", "test", 2.0, result_tokens=25),
        ToolCall("Read", "read", 0.5, error=True),
    )
    a = Session("a", (Turn(50, 20, tools=tools), Turn(30, 4, think_s=3.0)), shared_prefix=PREFIX)
    b = Session("b", (Turn(10, 6), Turn(5, 2, drop_context_to=100)), shared_prefix=PREFIX)
    return [a, b]


def test_totals_and_theoretical_hit_rate():
    """With an infinite cache only the first session pays for the shared prefix.

    reused: a 0 (nothing sent before) + 170, b 100 + 100 = 370 of 150+200+110+105 = 565.
    """
    stats = collect_stats(two_sessions(), {})
    assert (stats.num_sessions, stats.num_turns, stats.num_tool_calls) == (2, 4, 2)
    assert (stats.num_tool_errors, stats.num_compactions) == (1, 1)
    assert (stats.prompt_tokens, stats.reused_tokens) == (565, 370)
    assert stats.theoretical_prefix_cache_hit_rate == pytest.approx(370 / 565)


def test_quantities():
    """Each quantity holds the values it is named after."""
    found = {
        n: sorted(d.values()) for n, d in collect_stats(two_sessions(), {}).distributions.items()
    }
    assert found["turns"] == [2, 2]
    assert found["first_prompt_tokens"] == [110, 150]
    assert found["final_prompt_tokens"] == [105, 200]
    assert found["total_prompt_tokens"] == [215, 350]
    assert found["total_output_tokens"] == [8, 24]
    assert found["new_input_tokens"] == [5, 30]
    assert found["context_growth_tokens"] == [50]
    assert found["compaction_tokens"] == [5]
    assert found["result_tokens"] == [25]
    assert found["tool_calls"] == [0, 0, 0, 2]
    assert found["tool_wall_s[test]"] == [2.0]
    assert found["tool_wait_s"] == [2.0]
    assert found["gap_s"] == [0.0, 2.0]
    assert found["think_s"] == [3.0]


def test_subagents_count_in_totals():
    """A sub-agent's turns are turns, its tokens belong to its session, it is no session itself.

    parent 10, child 7: total prompt 17; child's own turns 1.
    """
    child = Session("c", (Turn(7, 2),))
    stats = collect_stats([Session("p", (Turn(10, 1, children=(child,)),))], {})
    assert (stats.num_sessions, stats.num_subagents, stats.num_turns) == (1, 1, 2)
    assert list(stats.distributions["total_prompt_tokens"].values()) == [17]
    assert list(stats.distributions["total_output_tokens"].values()) == [3]
    assert list(stats.distributions["subagent_turns"].values()) == [1]


def test_provenance_says_how_each_field_is_known():
    """Named fields keep their words; others are "not stated" if they occur, else absent."""
    said = {
        "output_tokens": "recorded",
        "tools.wall_s": "derived: end - start",
        "extra": "recorded",
    }
    provenance = collect_stats(two_sessions(), said).provenance
    assert provenance["output_tokens"] == "recorded"
    assert provenance["tools.wall_s"] == "derived: end - start"
    assert provenance["tools.result_tokens"] == "not stated"
    assert provenance["tools.cpu_s"] == "absent"
    assert provenance["extra"] == "recorded"


def test_summary_percentiles_interpolate():
    """0..100 has mean 50 and percentiles equal to their rank; nothing gives n alone."""
    rng = np.random.default_rng(0)
    distribution = SampledValues(rng)
    assert distribution.summary() == {"n": 0}
    for value in range(101):
        distribution.add(value)
    summary = distribution.summary()
    assert (summary["n"], summary["mean"], summary["p5"], summary["p99"]) == (101, 50, 5, 99)


def test_memory_is_bounded_and_the_sample_fair():
    """Beyond its limit a quantity keeps a uniform sample; n and mean stay exact.

    Each quarter of the stream fills 500 of 2,000 places, standard error sqrt(2000 x 3/16) = 19.4;
    five of those allowed.
    """
    distribution = SampledValues(np.random.default_rng(0), max_values=2000)
    for value in range(20_000):
        distribution.add(value)
    kept = distribution.values()
    assert len(np.unique(kept)) == 2000
    assert (distribution.num, distribution.total / 20_000) == (20_000, 9999.5)
    counts, _ = np.histogram(kept, bins=4, range=(0, 20_000))
    assert np.abs(counts - 500).max() < 97


def test_distance_of_a_trace_to_itself_and_to_another(session):
    """The same trace is at 0; a disjoint quantity at 1; half-overlapping ones between.

    outputs {10, 5} against {10, 20}: the largest gap of the two step functions is 1/2.
    """
    mine = collect_stats([session("a", [(100, 10), (100, 5)])], {})
    other = collect_stats([session("b", [(900, 10), (900, 20)])], {})
    assert {d.quantity: d.ks for d in compare_stats(mine, mine)}["output_tokens"] == 0
    distances = {d.quantity: d for d in compare_stats(mine, other)}
    assert distances["output_tokens"].ks == pytest.approx(0.5)
    assert distances["first_prompt_tokens"].ks == 1
    assert (distances["new_input_tokens"].p50, distances["new_input_tokens"].p50_against) == (
        100,
        900,
    )


def test_json_is_plain():
    """to_json holds plain numbers and strings."""
    assert json.loads(json.dumps(collect_stats(two_sessions(), {}).to_json()))["sessions"] == 2


def test_real_trace_has_its_published_shape(shared_data):
    """111 sessions, 5,631 LLM calls, median 45 turns, median total prompt 1.70 M tokens."""
    from marsbench.trace.source import open_trace

    importer, sessions = open_trace(shared_data / "swe_rebench_glm.rounds.jsonl.gz")
    stats = collect_stats(sessions, importer.provenance)
    assert (stats.num_sessions, stats.num_turns, stats.num_tool_calls) == (111, 5631, 6455)
    assert stats.distributions["turns"].summary()["p50"] == 45
    total = stats.distributions["total_prompt_tokens"].summary()["p50"]
    assert total == pytest.approx(1_699_975, rel=0.02)
