"""The lines of vLLM's metrics page that are needed are read, and no others."""

from __future__ import annotations

from marsbench.engine.live.kinds import read_metrics
from marsbench.engine.live.kinds.vllm import Vllm
from marsbench.engine.live.metrics import parse_metrics


def read(page):
    return parse_metrics(page, Vllm.metrics)


PAGE = b"""# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="tiny"} 3.0
vllm:num_requests_waiting{engine="0",model_name="tiny"} 2.0
vllm:num_requests_waiting_by_reason{engine="0",model_name="tiny",reason="capacity"} 1.0
vllm:kv_cache_usage_perc{engine="0",model_name="tiny"} 0.25
vllm:prefix_cache_queries_total{engine="0",model_name="tiny"} 1200.0
vllm:prefix_cache_queries_created{engine="0",model_name="tiny"} 1.795e+09
vllm:external_prefix_cache_queries_total{engine="0",model_name="tiny"} 77.0
vllm:prefix_cache_hits_total{engine="0",model_name="tiny"} 1.024e+03
vllm:num_preemptions_total{engine="0",model_name="tiny"} 4.0
vllm:prompt_tokens_total{engine="0",model_name="tiny"} 1300.0
vllm:generation_tokens_total{engine="0",model_name="tiny"} 55.0
vllm:iteration_tokens_total_count{engine="0",model_name="tiny"} 60.0
vllm:iteration_tokens_total_sum{engine="0",model_name="tiny"} 999.0
vllm:cache_config_info{block_size="128",engine="0",note="a \\"quoted\\" b",num_gpu_blocks="513"} 1.0
"""


def test_one_engine():
    """Counters, gauges and sizes; 513 blocks less vLLM's null block."""
    found = read(PAGE)
    assert found is not None
    assert found._asdict() == {
        "running": 3,
        "waiting": 2,
        "queried_tokens": 1200,
        "hit_tokens": 1024,
        "preemptions": 4,
        "prompt_tokens": 1300,
        "generated_tokens": 55,
        "steps": 60,
        "kv_usage": 0.25,
        "num_blocks": 512,
        "block_size": 128,
    }


def test_two_engines_and_differences():
    """Data-parallel ranks add up, usage is their mean; ``since`` subtracts counters only."""
    second = PAGE.replace(b'engine="0"', b'engine="1"').replace(b"} 0.25", b"} 0.75")
    both = read(PAGE + second)
    assert (both.running, both.hit_tokens, both.num_blocks, both.kv_usage) == (6, 2048, 1024, 0.5)
    change = both.since(read(PAGE))
    assert (change.hit_tokens, change.running, change.num_blocks) == (1024, 6, 1024)


def test_other_servers():
    """A page without vLLM's names is no metrics at all."""
    assert read(b"sglang:num_running_reqs 3.0\n") is None
    assert read(b"vllm:unknown 3.0\n") is None
    assert read(b"<html>not found</html>") is None
    assert read_metrics(b"<html>not found</html>") is None


def test_the_kind_of_server_is_read_off_its_page():
    """One reader serves engine and gateway: it says whose page it is and what it says."""
    kind, found = read_metrics(PAGE)
    assert (kind.name, found.num_blocks, found.running) == ("vllm", 512, 3)


SGLANG = b"""# HELP sglang:num_pages Number of pages.
sglang:page_size{engine_type="unified",model_name="m",tp_rank="0"} 16.0
sglang:num_pages{engine_type="unified",model_name="m",tp_rank="0"} 320.0
"""
LATER = b"""sglang:num_running_reqs{model_name="m",tp_rank="0"} 3.0
sglang:num_queue_reqs{model_name="m",tp_rank="0"} 2.0
sglang:token_usage{model_name="m",tp_rank="0"} 0.25
sglang:full_token_usage{model_name="m",tp_rank="0"} 0.26
sglang:prefill_effective_tokens_total{mode="input",model_name="m"} 631.0
sglang:prefill_effective_tokens_total{mode="device_hit",model_name="m"} 619.0
sglang:cuda_graph_passes_total{mode="prefill_none",model_name="m"} 2.0
sglang:cuda_graph_passes_total{mode="decode_none",model_name="m"} 38.0
sglang:cached_tokens_total{cache_source="device",model_name="m"} 619.0
sglang:num_retracted_requests_total{model_name="m"} 1.0
sglang:prompt_tokens_total{is_streaming="true",model_name="m"} 1250.0
sglang:generation_tokens_total{is_streaming="true",model_name="m"} 40.0
"""


def test_sglang_before_and_after_its_first_request():
    """Its page has sizes only until something runs; two data-parallel schedulers have twice the
    pages, of the same size."""
    kind, fresh = read_metrics(SGLANG)
    assert (kind.name, fresh.num_blocks, fresh.block_size) == ("sglang", 320, 16)
    assert read_metrics(SGLANG + LATER)[1]._asdict() == {
        "running": 3,
        "waiting": 2,
        "queried_tokens": 1250,
        "hit_tokens": 619,
        "preemptions": 1,
        "prompt_tokens": 1250,
        "generated_tokens": 40,
        "steps": 40,
        "kv_usage": 0.25,
        "num_blocks": 320,
        "block_size": 16,
    }
    both = read_metrics(SGLANG + SGLANG.replace(b'rank="0"', b'rank="1"'))[1]
    assert (both.num_blocks, both.block_size) == (640, 16)
