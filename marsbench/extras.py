"""The optional parts of the installation: what each brings, what is missing, and how to get it."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from shlex import quote
from typing import Any

from marsbench.errors import ConfigError

SOURCES = Path(__file__).parents[1]
"""The folder that holds the package: of a clone, or of what pip has installed."""

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


def how_to_install(extra: str) -> str:
    """The command that adds an extra to this very installation, from wherever that came.

    A clone is installed from its folder again, as is a folder, an archive or a repository that pip was
    given; everything else is looked up in the package index.
    """
    return f"pip install {_requirement(extra, SOURCES)}"


def require(extra: str, what: str) -> None:
    """ConfigError, with the command that installs the extra, if ``what`` cannot work without it."""
    absent = missing(extra)
    if absent:
        raise ConfigError(
            f"{what} needs {', '.join(absent)}, not installed here: {how_to_install(extra)}"
        )


def _requirement(extra: str, sources: Path) -> str:
    from urllib.parse import unquote, urlsplit

    if _is_clone(sources):
        return f"-e {_folder(sources, extra)}"
    origin = _origin()
    url: str = origin.get("url", "")
    if "dir_info" in origin:
        folder = Path(unquote(urlsplit(url).path))
        if _is_clone(folder):
            return _folder(folder, extra)
    elif "vcs_info" in origin:
        version = origin["vcs_info"]
        return quote(f"marsbench[{extra}] @ {version['vcs']}+{url}@{version['commit_id']}")
    elif url:
        return quote(f"marsbench[{extra}] @ {url}")
    return quote(f"marsbench[{extra}]")


def _is_clone(folder: Path) -> bool:
    return (folder / "pyproject.toml").is_file() and (folder / "marsbench").is_dir()


def _folder(folder: Path, extra: str) -> str:
    name = "." if folder.resolve() == Path.cwd().resolve() else str(folder)
    return quote(f"{name}[{extra}]")


def _origin() -> dict[str, Any]:
    """What pip was given to install (PEP 610); empty if that was a name in an index."""
    import json  # NOTE: `marsbench list` imports this module and must answer at once
    from importlib.metadata import PackageNotFoundError, distribution

    try:
        text = distribution("marsbench").read_text("direct_url.json")
    except PackageNotFoundError:
        return {}
    found: dict[str, Any] = json.loads(text) if text else {}
    return found


def _is_there(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ImportError:  # a package above it is missing
        return False
