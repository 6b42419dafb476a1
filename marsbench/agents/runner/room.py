"""The room an agent works in: its workspace, seen at the same path by every agent where permitted.

Prompts name the workspace's path, so agents share the cached beginning of their prompts only if all of
them see the same one, as they would in containers. A mount namespace of the agent's own gives that;
it needs root on Linux, and it is gone with the agent's last process, whatever ends it.
"""

from __future__ import annotations

import ctypes
import os
import shutil
from pathlib import Path

CLONE_NEWNS = 0x00020000
MS_BIND = 0x1000
MS_REC = 0x4000
MS_PRIVATE = 0x40000
MIB = 1 << 20


class RoomError(RuntimeError):
    """The room cannot be made."""


def enter(workspace: Path, mount_at: str, limit_mib: int) -> Path:
    """Go into the workspace; returns the path at which this process and its children see it.

    With ``limit_mib`` it is a copy in memory of that size, which ends with the process.
    """
    if not mount_at:
        os.chdir(workspace)
        return workspace
    seen = Path(mount_at)
    libc = ctypes.CDLL(None, use_errno=True)
    _check("unshare", libc.unshare(CLONE_NEWNS))
    _check("make mounts private", libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None))
    # The mount covers the folder above, which exists everywhere: nothing has to be made for it.
    above = bytes(seen.parent)
    if limit_mib:
        options = f"size={limit_mib}m,mode=755".encode()
        _check("mount", libc.mount(b"tmpfs", above, b"tmpfs", 0, options))
        shutil.copytree(workspace, seen, symlinks=True)
    else:
        if workspace.name != seen.name:
            raise RoomError(f"{workspace}: its last part must be {seen.name!r}")
        _check("mount", libc.mount(bytes(workspace.parent), above, None, MS_BIND, None))
    os.chdir(seen)
    return seen


def permitted() -> bool:
    """Whether mounts of one's own can be made here (tried in a child process)."""
    child = os.fork()
    if child == 0:
        libc = ctypes.CDLL(None, use_errno=True)
        failed = libc.unshare(CLONE_NEWNS) or libc.mount(
            b"none", b"/", None, MS_REC | MS_PRIVATE, None
        )
        failed = failed or libc.mount(b"tmpfs", b"/mnt", b"tmpfs", 0, b"size=1m")
        os._exit(1 if failed else 0)
    return os.waitpid(child, 0)[1] == 0


def full(path: Path, limit_mib: int) -> bool:
    """Whether nothing can be written any more."""
    stats = os.statvfs(path)
    return bool(limit_mib) and (stats.f_bavail * stats.f_frsize < MIB // 8 or stats.f_favail == 0)


def _check(what: str, result: int) -> None:
    if result:
        code = ctypes.get_errno()
        raise RoomError(f"cannot {what}: {os.strerror(code)}")
