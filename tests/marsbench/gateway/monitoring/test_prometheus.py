"""A real Prometheus with the files of deploy/ scrapes a real gateway; its rules fire when they should."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import socket
import subprocess
from pathlib import Path

import httpx
import pytest
import yaml

from marsbench.gateway.backends.fake import FakeAnswer

HERE = Path(__file__).parent
DEPLOY = HERE.parents[3] / "deploy"
RULES = DEPLOY / "alerts.yaml"
needs_prometheus = pytest.mark.skipif(
    shutil.which("prometheus") is None or shutil.which("promtool") is None,
    reason="prometheus is not installed (Debian's package of that name)",
)
QUIET = {"Preemptions and lent places"}
"""Panels of series that some servers do not have."""


def promtool(*arguments: str) -> None:
    done = subprocess.run(
        ["promtool", *arguments], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_has_a_test():
    """By name, in the file that promtool reads."""
    tested = yaml.safe_load((HERE / "alerts_test.yaml").read_text())["tests"]
    names = {one["alertname"] for test in tested for one in test["alert_rule_test"]}
    rules = yaml.safe_load(RULES.read_text())["groups"][0]["rules"]
    assert names == {rule["alert"] for rule in rules}


@needs_prometheus
def test_alerts_fire_on_what_they_are_for(tmp_path):
    """promtool plays series against the rules: each fires after its time, none before."""
    text = (HERE / "alerts_test.yaml").read_text().replace("RULES", str(RULES))
    (tmp_path / "test.yaml").write_text(text)
    promtool("check", "rules", str(RULES))
    promtool("test", "rules", str(tmp_path / "test.yaml"))


@contextlib.asynccontextmanager
async def prometheus(folder: Path, target: str):
    """A client of a Prometheus that scrapes ``target`` as deploy/prometheus.yaml says, but faster."""
    config = yaml.safe_load((DEPLOY / "prometheus.yaml").read_text())
    config["global"] = {"scrape_interval": "250ms", "evaluation_interval": "250ms"}
    config["rule_files"] = [str(RULES)]
    job = next(job for job in config["scrape_configs"] if job["job_name"] == "marsbench")
    job["static_configs"] = [{"targets": [target]}]
    config["scrape_configs"] = [job]
    (folder / "prometheus.yaml").write_text(yaml.safe_dump(config))
    promtool("check", "config", str(folder / "prometheus.yaml"))
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    process = subprocess.Popen(  # noqa: ASYNC220 - returns at once
        [
            "prometheus", f"--config.file={folder / 'prometheus.yaml'}",
            f"--storage.tsdb.path={folder / 'data'}", f"--web.listen-address=127.0.0.1:{port}",
        ],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        async with httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{port}", timeout=20, trust_env=False, verify=False
        ) as client:
            yield client
    finally:
        process.terminate()
        await asyncio.to_thread(process.wait)


async def ask(client: httpx.AsyncClient, expression: str) -> list[dict]:
    """The instant vector of an expression; empty while Prometheus starts."""
    try:
        answer = await client.get("/api/v1/query", params={"query": expression})
    except httpx.TransportError:
        return []
    if answer.status_code == 503:
        return []
    assert answer.status_code == 200, f"{expression}: {answer.text}"
    return answer.json()["data"]["result"]


@needs_prometheus
def test_every_panel_of_the_dashboard_shows_a_real_gateways_data(rig, tmp_path):
    """Turns with tool calls through the gateway, scraped: each expression of each panel has a value,
    the rules load, and the backend's death raises its alert."""
    board = json.loads((DEPLOY / "grafana" / "dashboards" / "gateway.json").read_text())
    panels = {
        panel["title"]: [target["expr"] for target in panel["targets"]] for panel in board["panels"]
    }
    calls = (("c", "bash", '{"command": "make"}'),)

    async def story():
        async with (
            rig(lambda _n, _b: FakeAnswer(calls=calls, cached_tokens=2), tool_cores=2) as r,
            prometheus(tmp_path, r.url.removeprefix("http://")) as client,
        ):
            async with asyncio.timeout(60):
                while not await ask(client, 'up{job="marsbench"} == 1'):  # noqa: ASYNC110
                    await asyncio.sleep(0.1)
            missing = dict(panels)
            turn = 0
            async with asyncio.timeout(120):
                while missing.keys() - QUIET:
                    talk = [{"role": "user", "content": "go"}] * (turn + 1)
                    assert (await r.chat(talk, session="s")).status_code == 200
                    body = {"session_id": "s", "name": "bash"}
                    lease = (await r.client.post("/v1/tools/acquire", json=body)).json()["lease"]
                    await r.client.post("/v1/tools/release", json={"lease": lease})
                    turn += 1
                    for title, expressions in list(missing.items()):
                        found = [
                            await ask(client, text.replace("$__rate_interval", "5s"))
                            for text in expressions
                        ]
                        if all(rows and rows[0]["value"][1] != "NaN" for rows in found):
                            del missing[title]
                    await asyncio.sleep(0.1)
            rules = (await client.get("/api/v1/rules")).json()["data"]["groups"][0]["rules"]
            assert {rule["health"] for rule in rules} == {"ok"}
            for server in r.backend_servers:
                for listener in server.servers:
                    listener.close()
                for connection in list(server.server_state.connections):
                    connection.transport.abort()
            pending = 'ALERTS{alertname="GatewayHasNoBackend"}'
            async with asyncio.timeout(60):
                while not await ask(client, pending):  # noqa: ASYNC110
                    await asyncio.sleep(0.1)

    asyncio.run(story())
