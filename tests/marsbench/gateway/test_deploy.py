"""The files in ``deploy/`` are true: flags exist, metrics are on the page, the image serves."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path

import kubernetes_validate
import pytest
import typer.main
import yaml

from marsbench.cli import serve
from marsbench.engine.profile import load_profile
from marsbench.registry import load

ROOT = Path(__file__).resolve().parents[3]
DEPLOY = ROOT / "deploy"
FILES = sorted(path for path in DEPLOY.rglob("*") if path.suffix in {".yaml", ".json", ".md"})


def flags_of_serve() -> set[str]:
    app = typer.Typer()
    app.command()(serve.command)
    command = typer.main.get_command(app)
    return {name for option in command.params for name in (*option.opts, *option.secondary_opts)}


def commands() -> list[list[str]]:
    """The gateway's command lines in compose.yaml and kubernetes.yaml."""
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    pods = list(yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text()))
    containers = pods[0]["spec"]["template"]["spec"]["containers"]
    return [
        compose["services"]["gateway"]["command"],
        next(found["args"] for found in containers if found["name"] == "gateway"),
    ]


def test_files_can_be_read_and_name_metrics_that_exist(rig):
    """YAML and JSON parse, and alerts, dashboard and guide speak of metrics that the gateway has."""

    async def story():
        async with rig() as r:
            found = set()
            for family in r.gateway.meters.registry.collect():
                endings = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}
                found |= {family.name + end for end in endings.get(family.type, ("",))}
            return found

    known = asyncio.run(story())
    for path in FILES:
        text = path.read_text()
        if path.suffix == ".yaml":
            list(yaml.safe_load_all(text))
        if path.suffix == ".json":
            json.loads(text)
        assert set(re.findall(r"\bmarsbench_gateway_\w+", text)) <= known, path.name


@pytest.mark.parametrize("number", [0, 1])
def test_commands_are_those_of_the_command_line(number):
    """``marsbench serve`` knows every flag, and the system and the profile exist."""
    command = commands()[number]
    assert command[0] == "serve"
    given = dict(text.partition("=")[::2] for text in command[1:])
    assert set(given) <= flags_of_serve()
    load("SYSTEMS", given["--system"])
    load_profile(given["--profile"])


def test_the_scheduler_listens_where_the_gateway_publishes():
    """Compose and Kubernetes start both parts with one address and one system."""
    for path in ("compose.yaml", "kubernetes.yaml"):
        text = (DEPLOY / path).read_text()
        published = re.search(r"--publish=(\S+)", text).group(1)
        inside = json.loads(re.search(r"--additional-config=(\{.*?\}\})", text, re.DOTALL).group(1))
        assert inside["marsbench"]["listen"] == published
        assert f"--system={inside['marsbench']['system']}" in text
        assert f"--profile={inside['marsbench']['profile']}" in text
        assert f"--tool-cores={inside['marsbench']['tool_cores']}" in text


def test_the_image_holds_the_gateway():
    """Its extra is installed, its port is exposed, and its health is checked."""
    text = (ROOT / "Dockerfile").read_text()
    assert '".[gateway]"' in text
    assert "EXPOSE 8080" in text
    assert re.search(r"HEALTHCHECK [^\n]*\\\n\s+CMD .*127\.0\.0\.1:8080/health", text)


def kubernetes_files() -> list[tuple[str, dict]]:
    return [
        (f"{path.name}: {found['kind']}", found)
        for path in sorted(DEPLOY.glob("*kubernetes.yaml"))
        for found in yaml.safe_load_all(path.read_text())
    ]


@pytest.mark.parametrize(("name", "found"), kubernetes_files())
def test_kubernetes_knows_every_field(name, found):
    """Strictly, against the API's own schemas; a custom resource has none, so its parts are looked at."""
    if found["kind"] == "HTTPRoute":
        services = [one for _, one in kubernetes_files() if one["kind"] == "Service"]
        offered = {(s["metadata"]["name"], p["port"]) for s in services for p in s["spec"]["ports"]}
        for rule in found["spec"]["rules"]:
            assert {(to["name"], to["port"]) for to in rule["backendRefs"]} <= offered
        return
    kubernetes_validate.validate(found, kubernetes_validate.latest_version(), strict=True)


def test_a_wrong_field_would_be_found():
    """The check above can fail."""
    _, found = next(one for one in kubernetes_files() if one[1]["kind"] == "Deployment")
    found["spec"]["template"]["spec"]["containers"][0]["livenesProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(found, kubernetes_validate.latest_version(), strict=True)


def test_compose_is_whole():
    """Every service that is named, volume that is mounted and secret that is read is defined."""
    found = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    services = found["services"]
    for service in services.values():
        assert set(service.get("depends_on", {})) <= set(services)
        assert set(service.get("secrets", [])) <= set(found["secrets"])
        for volume in service.get("volumes", []):
            source = volume.partition(":")[0]
            assert source in found["volumes"] or (DEPLOY / source).exists(), source
        build = service.get("build")
        if build:
            context = DEPLOY / build["context"]
            assert (context / build.get("dockerfile", "Dockerfile")).is_file()
    targets = yaml.safe_load((DEPLOY / "prometheus.yaml").read_text())["scrape_configs"]
    hosts = {
        t.partition(":")[0] for job in targets for s in job["static_configs"] for t in s["targets"]
    }
    assert hosts <= set(services)
