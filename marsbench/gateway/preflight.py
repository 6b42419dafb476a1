"""What an operator wants to know before ``marsbench serve``: would it work, and what stands in the way?"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import shutil
import socket
import time
from collections.abc import AsyncIterator, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import zmq

from marsbench.engine.vllm.runtime import SUPPORTED, SUPPORTED_TEXT
from marsbench.errors import MarsbenchError
from marsbench.gateway.control.views import metered_kinds, read_metrics
from marsbench.gateway.http.server import build_gateway, listen
from marsbench.gateway.settings import GatewaySettings

PACKAGES = ("uvicorn", "httptools", "uvloop", "aiohttp", "starlette", "prometheus-client", "pyzmq")
ANSWER_S = 5.0
JOIN_S = 3.0
"""A scheduler that listens connects within a second of the address being there."""
PER_CLIENT, SPARE = 2, 200
"""Descriptors of one client: its connection and the backend's; and of everything else."""
SECRETS = "--upstream-key-file"


class ServeCheck(NamedTuple):
    """One thing that serving needs, and how it was found."""

    topic: str
    state: str
    """ok, missing (it works without, but) or broken (``serve`` cannot work)."""
    text: str


def examine(settings: GatewaySettings) -> Iterator[ServeCheck]:
    """Check everything that serving needs, in the order in which an operator mends it."""
    yield ServeCheck("packages", "ok", ", ".join(f"{name} {version(name)}" for name in PACKAGES))
    yield _system(settings)
    yield from _ports(settings)
    yield _descriptors(settings)
    yield from _disk(settings)
    yield from asyncio.run(_upstreams(settings))
    yield _plugin(settings)


def _system(settings: GatewaySettings) -> ServeCheck:
    import dataclasses

    quiet = dataclasses.replace(settings, publish="", record=None, out=None)
    try:
        build_gateway(quiet)
    except MarsbenchError as error:
        return ServeCheck("system", "broken", str(error))
    return ServeCheck("system", "ok", f"{settings.system}, told of {settings.profile}")


def _ports(settings: GatewaySettings) -> Iterator[ServeCheck]:
    wanted = [("port", settings.host, settings.port)]
    if settings.metrics_port:
        wanted.append(("metrics port", settings.metrics_host, settings.metrics_port))
    for topic, host, port in wanted:
        try:
            listen(host, port).close()
        except (MarsbenchError, socket.gaierror) as error:
            yield ServeCheck(topic, "broken", str(error))
        else:
            yield ServeCheck(topic, "ok", f"{host}:{port} is free")


def _descriptors(settings: GatewaySettings) -> ServeCheck:
    allowed, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = PER_CLIENT * settings.limits.connections + SPARE
    if allowed >= needed:
        return ServeCheck("open files", "ok", f"{allowed} allowed, {needed} needed at most")
    clients = max(allowed - SPARE, 0) // PER_CLIENT
    raise_it = f"ulimit -n {needed}" + (f" (hard limit {most})" if most < needed else "")
    return ServeCheck(
        "open files", "missing", f"{allowed} allowed: enough for {clients} clients; {raise_it}"
    )


def _disk(settings: GatewaySettings) -> Iterator[ServeCheck]:
    for flag, path, needed in (
        ("--out", settings.out, settings.out_bytes),
        ("--record", settings.record, 0),
    ):
        if path is None:
            continue
        folder = next(parent for parent in (path, *path.absolute().parents) if parent.is_dir())
        free = shutil.disk_usage(folder).free
        if not os.access(folder, os.W_OK):
            yield ServeCheck(flag, "broken", f"{folder}: cannot be written to by this user")
        elif free < needed:
            yield ServeCheck(
                flag,
                "broken",
                f"{folder}: {free >> 20} MiB are free, and --out-mib allows {needed >> 20}",
            )
        else:
            yield ServeCheck(flag, "ok", f"{Path(folder)}: {free >> 20} MiB are free")


async def _upstreams(settings: GatewaySettings) -> list[ServeCheck]:
    headers = {}
    if settings.upstream_key:
        headers["authorization"] = f"Bearer {settings.upstream_key}"
    timeout = aiohttp.ClientTimeout(total=ANSWER_S)
    async with aiohttp.ClientSession(headers=headers, timeout=timeout) as client:
        return [
            verdict
            for number, url in enumerate(settings.backends)
            async for verdict in _upstream(client, number, url.rstrip("/").removesuffix("/v1"))
        ]


async def _upstream(
    client: aiohttp.ClientSession, number: int, url: str
) -> AsyncIterator[ServeCheck]:
    topic = f"upstream {number}"
    began_s = time.monotonic()
    try:
        status, page = await _get(client, f"{url}/v1/models")
    except (aiohttp.ClientError, TimeoutError) as error:
        reason = str(error) or f"no answer within {ANSWER_S:g} s"
        yield ServeCheck(topic, "broken", f"{url}: {reason}")
        return
    took_ms = (time.monotonic() - began_s) * 1e3
    if status in {401, 403}:
        yield ServeCheck(topic, "broken", f"{url}: wants a key ({status}); give {SECRETS}")
        return
    names = _models(page) if status == 200 else []
    if not names:
        yield ServeCheck(topic, "broken", f"{url}: /v1/models answers {status} and names no model")
        return
    yield ServeCheck(topic, "ok", f"{url} serves {', '.join(names)} ({took_ms:.0f} ms)")
    yield await _version(client, f"{topic} version", url)
    yield await _metrics(client, f"{topic} metrics", url)


async def _version(client: aiohttp.ClientSession, topic: str, url: str) -> ServeCheck:
    status, page = await _get(client, f"{url}/version")
    found = _json(page).get("version") if status == 200 else None
    if not isinstance(found, str):
        return ServeCheck(topic, "missing", "it does not say what it is (/version); no plug-in")
    numbers = tuple(int(part) for part in found.split("+")[0].split(".")[:2] if part.isdigit())
    if numbers != SUPPORTED:
        text = f"vLLM {found}: the gateway works, the plug-in needs {SUPPORTED_TEXT}"
        return ServeCheck(topic, "missing", text)
    return ServeCheck(topic, "ok", f"vLLM {found}")


async def _metrics(client: aiohttp.ClientSession, topic: str, url: str) -> ServeCheck:
    status, page = await _get(client, f"{url}/metrics")
    found = read_metrics(page) if status == 200 else None
    if found is None:
        return ServeCheck(
            topic,
            "missing",
            f"/metrics answers {status} and is of no known server: policies count memory by the "
            "profile",
        )
    kind, numbers = found
    if not numbers.num_blocks:
        text = f"{kind} does not tell its KV blocks: the profile's number is used"
        return ServeCheck(topic, "missing", text)
    names = next(k.metrics for k in metered_kinds() if k.name == kind)
    assert names is not None
    absent = [n.decode() for n in names.summed if names.prefix + b":" + n not in page]
    if absent:
        return ServeCheck(topic, "missing", f"{kind} without {', '.join(absent)}: these stay at 0")
    tokens = numbers.num_blocks * numbers.block_size
    return ServeCheck(
        topic,
        "ok",
        f"{kind}, {numbers.num_blocks} KV blocks of {numbers.block_size} ({tokens} tokens)",
    )


def _plugin(settings: GatewaySettings) -> ServeCheck:
    """Whether a scheduler listens where the gateway will publish: it subscribes when it can."""
    topic = "plug-in"
    if not settings.publish:
        return ServeCheck(
            topic,
            "missing",
            "no --publish: the engine schedules in its own order (that is allowed)",
        )
    context = zmq.Context()
    outlet = context.socket(zmq.XPUB)
    outlet.setsockopt(zmq.LINGER, 0)
    try:
        outlet.bind(settings.publish)
        joined = bool(outlet.poll(round(JOIN_S * 1e3)))
    except zmq.ZMQError as error:
        return ServeCheck(topic, "broken", f"--publish {settings.publish}: {error}")
    finally:
        outlet.close()
        context.term()
    if joined:
        return ServeCheck(topic, "ok", f"a scheduler listens at {settings.publish}")
    return ServeCheck(
        topic,
        "missing",
        f"nobody listens at {settings.publish}: start the server with --scheduler-cls and this "
        "address as marsbench.listen",
    )


async def _get(client: aiohttp.ClientSession, url: str) -> tuple[int, bytes]:
    async with client.get(url, allow_redirects=False) as answer:
        return answer.status, await answer.content.read(8 << 20)


def _json(page: bytes) -> dict[str, Any]:
    try:
        found = json.loads(page)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _models(page: bytes) -> list[str]:
    listed = _json(page).get("data")
    rows = listed if isinstance(listed, list) else []
    return [str(row["id"]) for row in rows if isinstance(row, dict) and row.get("id")]
