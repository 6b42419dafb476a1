"""The optional parts of the installation: what each brings, which packages it needs, what is missing."""

from __future__ import annotations

from importlib.util import find_spec

from marsbench.errors import ConfigError

EXTRAS: dict[str, tuple[str, tuple[str, ...]]] = {
    "live": (
        "engines vllm, sglang and openai, calibrate, run --stream, watch",
        ("aiohttp", "psutil", "zmq"),
    ),
    "gateway": (
        "serve and record",
        ("starlette", "uvicorn", "httptools", "uvloop", "aiohttp", "prometheus_client", "zmq"),
    ),
    "otlp": (
        "serve --otlp, watch --otlp, export --format otlp",
        ("opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http"),
    ),
    "ray": ("run --jobs ray and ray://HOST:PORT", ("ray",)),
    "docker": ("tools in containers (--tools docker)", ("docker",)),
    "datasets": (
        "Hugging Face datasets: hf:OWNER/NAME, parquet, arrow, trace fetch",
        ("datasets",),
    ),
    "compile": ("scripts/compile_core.py", ("mypy", "setuptools")),
}
"""Extra -> (what it is for, the modules it installs). vLLM has its own check: its version counts."""


def missing(extra: str) -> list[str]:
    """The modules of an extra that are not installed."""
    return [module for module in EXTRAS[extra][1] if not _is_there(module)]


def require(extra: str, what: str) -> None:
    """ConfigError, with the command that installs the extra, if ``what`` cannot work without it."""
    absent = missing(extra)
    if absent:
        raise ConfigError(
            f"{what} needs {', '.join(absent)}, not installed here: pip install 'marsbench[{extra}]'"
        )


def _is_there(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ImportError:  # a package above it is missing
        return False
