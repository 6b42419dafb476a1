"""The lines of vLLM's metrics page that are needed are read, and no others."""

from __future__ import annotations

from marsbench.engine.live.metrics import parse_metrics

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
    found = parse_metrics(PAGE)
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
    both = parse_metrics(PAGE + second)
    assert (both.running, both.hit_tokens, both.num_blocks, both.kv_usage) == (6, 2048, 1024, 0.5)
    change = both.since(parse_metrics(PAGE))
    assert (change.hit_tokens, change.running, change.num_blocks) == (1024, 6, 1024)


def test_other_servers():
    """A page without vLLM's names is no metrics at all."""
    assert parse_metrics(b"sglang:num_running_reqs 3.0\n") is None
    assert parse_metrics(b"<html>not found</html>") is None
