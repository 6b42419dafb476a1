"""The /metrics page: what an operator needs is on it, under stable names, and Prometheus can read it."""

from __future__ import annotations

import asyncio
import json
import logging

import pytest
from prometheus_client.parser import text_string_to_metric_families

from marsbench.engine.link.sockets import Outlet
from marsbench.engine.link.wire import EngineState
from marsbench.errors import ConfigError
from marsbench.gateway.backends.fake import FakeAnswer, FakeBackend
from marsbench.gateway.http.guard import endpoint_of
from marsbench.gateway.monitoring.logs import JsonLines
from marsbench.gateway.settings import GatewaySettings

USER = {"role": "user", "content": "go"}
BASH = (("c1", "bash", '{"command":"make"}'),)


async def page_of(r, **more) -> dict[tuple, float]:
    """Samples by (name, sorted labels)."""
    text = (await r.client.get("/metrics", **more)).text
    return {
        (
            sample.name.removeprefix("marsbench_gateway_"),
            *sorted(sample.labels.values()),
        ): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_every_answer_is_counted_once_by_endpoint_status_and_tenant(rig):
    """Mistakes and unknown paths, too; ids in paths are no label."""

    async def story():
        async with rig(lambda _n, _b: FakeAnswer(cached_tokens=3)) as r:
            await r.chat([USER], session="a")
            await r.client.post("/s/x/v1/chat/completions", content=b"{")
            await r.client.get("/v1/nothing/42")
            await r.client.post("/v1/sessions/none/end")
            return await page_of(r)

    found = asyncio.run(story())
    counted = {key[1:]: value for key, value in found.items() if key[0] == "requests_total"}
    assert counted == {
        ("200", "chat", "default"): 1,
        ("400", "chat", "default"): 1,
        ("404", "default", "other"): 1,
        ("404", "default", "sessions"): 1,
    }
    assert found["prompt_tokens_total", "0"] > 0
    assert found["cached_prompt_tokens_total", "0"] == 3
    assert found["generation_tokens_total", "0"] == 4
    assert found["admission_wait_seconds_count", "default"] == 1
    assert found["time_to_first_token_seconds_count", "0"] == 1


def test_totals_are_counters_and_states_are_gauges(rig):
    """Prometheus' rate() needs to know; a backend's own numbers are there by backend, and the
    process's, too."""

    async def story():
        backends = [FakeBackend(kv_use=0.5), FakeBackend(is_vllm=False)]
        async with rig(backends=backends) as r:
            text = (await r.client.get("/metrics")).text
            return {
                family.name.removeprefix("marsbench_gateway_"): family
                for family in text_string_to_metric_families(text)
            }

    found = asyncio.run(story())
    for name in ("policy_overrides", "lease_expiries", "overdue_calls", "lent_places", "requests"):
        assert found[name].type == "counter"
    for name in ("pending_turns", "active_sessions", "backend_up", "body_bytes"):
        assert found[name].type == "gauge"
    free = {s.labels["backend"]: s.value for s in found["backend_kv_free_blocks"].samples}
    assert free == {"0": 500, "1": 500}, "1000 blocks half used; what the profile says"
    assert [s.labels["backend"] for s in found["backend_requests_running"].samples] == ["0"]
    assert found["process_resident_memory_bytes"].samples[0].value > 0
    assert found["build_info"].samples[0].labels["system"] == "vllm"


def test_metrics_have_a_port_and_a_token_of_their_own(rig):
    """A client's token is not needed on the metrics port, where nothing else is served; elsewhere an
    operator's token reads them."""

    async def story():
        tokens = {"tokens": ("client-token",), "admin_tokens": ("admin-token",)}
        async with rig(**tokens) as r:
            admin = {"authorization": "Bearer admin-token"}
            assert (await r.client.get("/metrics")).status_code == 401
            assert (await r.client.get("/metrics", headers=admin)).status_code == 200
            r.gateway.guard.metrics_port = int(r.url.rpartition(":")[2])
            assert (await r.client.get("/metrics")).status_code == 200
            assert (await r.client.get("/health")).status_code == 200
            client = {"authorization": "Bearer client-token"}
            assert (await r.chat([USER], headers=client)).status_code == 404

    asyncio.run(story())


def test_paths_have_few_endpoints():
    """A label never grows with what clients send."""
    assert endpoint_of("/s/any/v1/messages") == "messages"
    assert endpoint_of("/v1/models/org/name") == "models"
    assert endpoint_of("/v1/tools/acquire") == "tools"
    assert endpoint_of("/wp-login.php") == endpoint_of("/s/x") == "other"


def test_the_access_log_has_a_line_for_each_request_and_no_content(rig, caplog):
    """Endpoint, status, seconds, tenant and session, as JSON; neither prompt nor key."""
    caplog.set_level(logging.INFO, "marsbench.gateway.access")

    async def story():
        async with rig(access_log=True) as r:
            key = {"authorization": "Bearer some-secret-key"}
            await r.chat([{"role": "user", "content": "SECRET"}], session="a", headers=key)

    asyncio.run(story())
    records = [r for r in caplog.records if r.name == "marsbench.gateway.access"]
    line = json.loads(JsonLines().format(records[0]))
    assert (line["endpoint"], line["status"], line["session"]) == ("chat", 200, "a")
    assert line["seconds"] > 0
    assert "SECRET" not in caplog.text
    assert "some-secret-key" not in caplog.text


def test_pins_are_what_the_plugin_says(rig, tmp_path, monkeypatch, eventually):
    """Of the scheduler that publishes for this backend; one address for each backend."""
    monkeypatch.chdir(tmp_path)

    async def story():
        outlet = Outlet("ipc://engine")
        try:
            async with rig(lambda _n, _b: FakeAnswer(), engine_streams=("ipc://engine",)) as r:
                assert ("backend_pinned_blocks", "0") not in await page_of(r)
                view = r.gateway.pool.views[0]

                def told():
                    state = EngineState(outlet.boot, outlet.seq, 0, 500, 400, 37, 1, 0)
                    outlet.send(state)
                    return view.told_pinned_blocks == 37

                await eventually(told)
                return await page_of(r)
        finally:
            outlet.close()

    assert asyncio.run(story())["backend_pinned_blocks", "0"] == 37
    with pytest.raises(ConfigError, match="1 given for 2 backends"):
        GatewaySettings(backends=("http://a", "http://b"), engine_streams=("ipc://x",))
