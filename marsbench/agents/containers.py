"""Containers of tasks that need one: a repository with its environment, as SWE-bench publishes them.

The repository is copied out of the image into the agent's workspace, which the container sees in both
places. So files are edited here, commands run there, and both mean the same files under one path.
"""

from __future__ import annotations

import contextlib
import tarfile
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from marsbench.agents.rooms import SEEN_AT
from marsbench.agents.runner.protocol import ContainerOrder
from marsbench.agents.task import ContainerTask, Task
from marsbench.errors import ConfigError, EngineError
from marsbench.extras import require
from marsbench.tools.docker import LABEL

if TYPE_CHECKING:
    from docker import DockerClient
    from docker.models.containers import Container

API_TIMEOUT_S = 600
IDLE = ["sleep", "infinity"]
CHUNK_BYTES = 1 << 20


def connect() -> DockerClient:
    """The engine that the environment names; ConfigError if none runs."""
    require("docker", "tasks in containers")
    import docker

    try:
        client = docker.from_env(timeout=API_TIMEOUT_S)
        client.ping()
    except docker.errors.DockerException as error:
        raise ConfigError(
            "these tasks run in containers, and no Docker engine answers here "
            f"({' '.join(str(error).split())[:120]}); start one or set DOCKER_HOST, or take "
            "--workload tasks, which needs none"
        ) from None
    return client


class Containers:
    """Containers of one cell. Use as a context manager: at its end none is left."""

    def __init__(self, client: Callable[[], DockerClient] = connect) -> None:
        self._client: DockerClient | None = None
        self._connect = client
        self._run_id = uuid.uuid4().hex

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.remove()

    def require(self, tasks: list[Task]) -> None:
        """Pull what the tasks need, before anything is started. Raises ConfigError or EngineError."""
        images = dict.fromkeys(task.image for task in tasks if isinstance(task, ContainerTask))
        if not images:
            return
        self._client = self._connect()
        for image in images:
            with _told(f"image {image}"):
                import docker

                try:
                    self._client.images.get(image)
                except docker.errors.ImageNotFound:
                    self._client.images.pull(image)

    def copy_out(self, task: ContainerTask, folder: Path) -> None:
        """Put the files of the image's repository into an empty folder."""
        with _told(f"task {task.task_id}"), self._made(task.image) as container:
            parts, _ = container.get_archive(task.folder, chunk_size=CHUNK_BYTES)
            with tempfile.TemporaryFile() as packed:
                for part in parts:
                    packed.write(part)
                packed.seek(0)
                _unpack(packed, folder)

    def start(self, task: ContainerTask, workspace: Path) -> ContainerOrder:
        """The task's container, running, with the workspace where the repository was."""
        with _told(f"task {task.task_id}"):
            container = self._create(
                task.image, [f"{workspace}:{task.folder}:rw", f"{workspace}:{SEEN_AT}:rw"]
            )
            container.start()
            container.reload()
            assert self._client is not None
            return ContainerOrder(
                address=_address(str(self._client.api.base_url)),
                container=str(container.id),
                pid=int(container.attrs["State"].get("Pid") or 0),
            )

    def remove(self) -> bool:
        """Remove all of this cell's containers, running or not; whether none is left."""
        if self._client is None:
            return True
        import docker

        wanted: dict[str, str | list[str] | bool] = {"label": f"{LABEL}={self._run_id}"}
        with contextlib.suppress(docker.errors.DockerException):
            for container in self._client.containers.list(all=True, filters=wanted):
                with contextlib.suppress(docker.errors.NotFound):
                    container.remove(force=True, v=True)
            return not self._client.containers.list(all=True, filters=wanted)
        return False

    @contextlib.contextmanager
    def _made(self, image: str) -> Iterator[Container]:
        container = self._create(image, [])
        try:
            yield container
        finally:
            container.remove(force=True, v=True)

    def _create(self, image: str, volumes: list[str]) -> Container:
        assert self._client is not None, "require() comes first"
        return self._client.containers.create(
            image, IDLE, entrypoint=[], volumes=volumes, network_mode="none", init=True,
            labels={LABEL: self._run_id},
        )  # fmt: skip


@contextlib.contextmanager
def _told(what: str) -> Iterator[None]:
    """What the engine refuses, in one line."""
    import docker

    try:
        yield
    except docker.errors.DockerException as error:
        text = " ".join(str(error).split())[:300]
        raise EngineError(f"{what}: the Docker engine says: {text}") from None


def _unpack(packed: Any, folder: Path) -> None:
    """An archive of one folder, without that folder's own name."""
    with tarfile.open(fileobj=packed) as archive:
        for member in archive:
            _, _, rest = member.name.partition("/")
            if rest:
                member.name = rest
                if member.islnk():
                    member.linkname = member.linkname.partition("/")[2]
                archive.extract(member, folder, filter="tar")


def _address(url: str) -> str:
    """As ``container_shell`` takes it: docker-py writes a socket as http+docker://localhost."""
    from docker.utils import kwargs_from_env

    if url.startswith("http+docker"):
        host = kwargs_from_env().get("base_url") or "unix:///var/run/docker.sock"
        return str(host).partition("://")[2]
    return url.partition("://")[2]
