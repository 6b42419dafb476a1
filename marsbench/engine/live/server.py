"""Starts a real inference server, waits until it answers, and stops it with all its children."""

from __future__ import annotations

import os
import shlex
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from marsbench.engine.base import EngineConfig
from marsbench.engine.live import supervisor
from marsbench.errors import EngineError

START_TIMEOUT_S = 600.0
"""A large model loads for minutes; a process that ends is noticed at once."""
GRACE_S = 10.0
"""For a server to end in order after SIGTERM."""
STOP_SLACK_S = supervisor.ORPHAN_GRACE_S + 5.0
LOG_LINES = 15
"""Last lines of the server's log in an error."""


@dataclass(frozen=True, slots=True)
class ServerCommand:
    """How to start a server, and where it will answer."""

    argv: tuple[str, ...]
    url: str
    """Without a path, for example http://127.0.0.1:8000."""
    model: str
    """The name requests give."""
    env: Mapping[str, str] = field(default_factory=dict)
    """Added to this process's environment."""

    def shown(self) -> str:
        """As one would type it, but for the folders that Python looks in."""
        given = [f"{name}={value}" for name, value in self.env.items() if name != "PYTHONPATH"]
        return shlex.join([*given, *self.argv])


def vllm_command(
    *,
    python: Path,
    model: str,
    engine: EngineConfig,
    port: int | None = None,
    cpu: bool = False,
    random_weights: bool = False,
    scheduler_cls: str | None = None,
    stream_interval: int = 1,
    worker_process: bool = False,
    extra: Sequence[str] = (),
) -> ServerCommand:
    """The command of vLLM's API server with the flags of ``engine``, run by the interpreter ``python``.

    ``python -m`` because CPU builds of vLLM are distributed under another name, which breaks the
    ``vllm`` console script. ``scheduler_cls`` is a dotted path that ``python`` can import.
    ``stream_interval`` is how many tokens a message carries after the first. On a CPU the model runs
    in the process of the scheduler, unless ``worker_process``: of two processes each spins while it
    waits for the other, and takes half a core from whatever else runs there (tools, the client).
    """
    port = free_port() if port is None else port
    flags = [
        *("--model", model, "--served-model-name", "marsbench"),
        *("--host", "127.0.0.1", "--port", str(port)),
        *("--block-size", str(engine.block_size)),
        *("--num-gpu-blocks-override", str(engine.num_blocks + 1)),  # one is vLLM's null block
        *("--max-num-batched-tokens", str(engine.max_num_batched_tokens)),
        *("--max-num-seqs", str(engine.max_num_seqs)),
        *("--max-model-len", str(engine.max_model_len)),
        *("--scheduling-policy", engine.policy),
        "--enable-prompt-tokens-details",
        "--enable-per-request-metrics",
        "--no-enable-log-requests",
        "--enable-prefix-caching" if engine.enable_prefix_caching else "--no-enable-prefix-caching",
    ]
    if engine.long_prefill_token_threshold:
        flags += ["--long-prefill-token-threshold", str(engine.long_prefill_token_threshold)]
    if stream_interval != 1:
        flags += ["--stream-interval", str(stream_interval)]
    if random_weights:
        flags += ["--load-format", "dummy"]
    if cpu:
        flags += ["--enforce-eager"]
    if scheduler_cls is not None:
        flags += ["--scheduler-cls", scheduler_cls]
    env = {"VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "WARNING"}
    if cpu:
        env |= {"VLLM_CPU_KVCACHE_SPACE": "1", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        env["VLLM_ENABLE_V1_MULTIPROCESSING"] = str(int(worker_process))
    argv = (str(python), "-m", "vllm.entrypoints.openai.api_server", *flags, *extra)
    return ServerCommand(argv, f"http://127.0.0.1:{port}", "marsbench", env)


def free_port() -> int:
    """A port nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Server:
    """A supervised server process. It dies with this process, however this one ends."""

    def __init__(self, command: ServerCommand, log_path: Path, *, grace_s: float = GRACE_S) -> None:
        self.command = command
        self._grace_s = grace_s
        self.log_path = log_path
        life, self._life = os.pipe()
        try:
            log_path.parent.mkdir(parents=True, exist_ok=True)
            with log_path.open("wb") as log:
                self._process = subprocess.Popen(  # noqa: S603 - the command is the caller's
                    [
                        *(sys.executable, "-I", supervisor.__file__),
                        *(str(life), str(grace_s), *command.argv),
                    ],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env={**os.environ, **command.env},
                    pass_fds=(life,),
                    start_new_session=True,  # Ctrl-C reaches us only; we then stop it in order
                )
        except OSError as error:
            os.close(self._life)
            raise EngineError(f"cannot start {command.argv[0]}: {error}") from error
        finally:
            os.close(life)

    @property
    def pid(self) -> int:
        """Process id of the supervisor; the server and its children are below it."""
        return self._process.pid

    def wait_ready(self, timeout_s: float = START_TIMEOUT_S) -> None:
        """Until ``/health`` answers 200; EngineError with the log's end if it dies or is late."""
        deadline_s = time.monotonic() + timeout_s
        while not answers(self.command.url):
            self.check_alive()
            if time.monotonic() >= deadline_s:
                raise EngineError(
                    f"the server does not answer at {self.command.url}/health after "
                    f"{timeout_s:g} s; allow more time or look at its log{self._log_end()}"
                )
            time.sleep(0.25)  # a server that loads a model tells nobody when it is ready: ask again

    def check_alive(self) -> None:
        """Raise EngineError with the log's end if the server has ended by itself."""
        code = self._process.poll()
        if code is not None:
            raise EngineError(f"the server ended with status {code}{self._log_end()}")

    def stop(self) -> None:
        """SIGTERM to the server, SIGKILL to what is left of it; returns when all are gone."""
        if self._life < 0:
            return
        os.close(self._life)
        self._life = -1
        try:
            self._process.wait(timeout=self._grace_s + STOP_SLACK_S)
        except subprocess.TimeoutExpired:
            left = [*supervisor.descendants(self.pid), self.pid]
            supervisor.send(left, 9)
            self._process.wait()

    def _log_end(self) -> str:
        return f" (log: {self.log_path})\n{tail(self.log_path, LOG_LINES)}"


@contextmanager
def running(
    command: ServerCommand,
    log_path: Path,
    *,
    timeout_s: float = START_TIMEOUT_S,
    grace_s: float = GRACE_S,
) -> Iterator[Server]:
    """A server that is ready inside the block and gone after it."""
    server = Server(command, log_path, grace_s=grace_s)
    try:
        server.wait_ready(timeout_s)
        yield server
    finally:
        server.stop()


def answers(url: str, timeout_s: float = 2.0) -> bool:
    """Whether ``/health`` at this address answers 200."""
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=timeout_s) as reply:  # noqa: S310
            return bool(reply.status == 200)
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return False


def tail(path: Path, num_lines: int) -> str:
    """The last lines of a log, without the blank ones."""
    text = path.read_text(encoding="utf-8", errors="replace")
    return "\n".join([line for line in text.splitlines() if line.strip()][-num_lines:])
