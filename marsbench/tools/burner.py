"""Burns a given amount of CPU time on some cores at once; run as a script, standard library only.

``burner.py serve CPUS``: one request a line on stdin, ``CPU_NS WIDTH SHARE_PPM NICE AFTER_NS``; the
answer is one line on stdout, the CPU time used in nanoseconds. ``burner.py once CPU_NS WIDTH
SHARE_PPM`` burns and ends. WIDTH processes share the work; each stays below SHARE_PPM millionths of a
core, and goes to niceness NICE when its part of AFTER_NS is done.
"""

import os
import resource
import signal
import sys
import time

SLICE_NS = 5_000_000
"""CPU time between two pauses of a burner that may not use a whole core."""


def burn(cpu_ns: int, share_ppm: int) -> None:
    """Use this much CPU time of this process; with a share below one core, pause in between."""
    end_ns = time.process_time_ns() + cpu_ns
    while (left_ns := end_ns - time.process_time_ns()) > 0:
        stop_ns = end_ns - left_ns + min(left_ns, SLICE_NS)
        while time.process_time_ns() < stop_ns:
            for _ in range(200):
                pass
        if share_ppm < 1_000_000:  # the pause is the point: it keeps the share below one core
            time.sleep(min(left_ns, SLICE_NS) * (1_000_000 - share_ppm) / share_ppm / 1e9)


def burn_wide(cpu_ns: int, width: int, share_ppm: int, nice: int = 0, after_ns: int = 0) -> int:
    """Burn on ``width`` processes; the CPU time used by all of them.

    Who becomes nicer is a process of its own: without privileges niceness never goes down again.
    """
    before = _used_ns()
    children = []
    for index in range(0 if nice else 1, width):
        pid = os.fork()
        if pid == 0:
            die_with_parent()
            part_ns = _part(cpu_ns, index, width)
            equal_ns = min(part_ns, _part(after_ns, index, width)) if nice else part_ns
            burn(equal_ns, share_ppm)
            os.nice(nice)
            burn(part_ns - equal_ns, share_ppm)
            os._exit(0)
        children.append(pid)
    if not nice:
        burn(_part(cpu_ns, 0, width), share_ppm)
    for pid in children:
        os.waitpid(pid, 0)
    return _used_ns() - before


def die_with_parent() -> None:
    """SIGKILL this process when its parent ends (Linux)."""
    import ctypes

    ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)


def _part(cpu_ns: int, index: int, width: int) -> int:
    return cpu_ns * (index + 1) // width - cpu_ns * index // width


def _used_ns() -> int:
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time_ns() + round((children.ru_utime + children.ru_stime) * 1e9)


def main(arguments: list[str]) -> None:
    """See the module's docstring."""
    if arguments[0] == "once":
        burn_wide(int(arguments[1]), int(arguments[2]), int(arguments[3]))
        return
    die_with_parent()
    if arguments[1]:
        os.sched_setaffinity(0, {int(cpu) for cpu in arguments[1].split(",")})
    for line in sys.stdin:
        print(burn_wide(*(int(word) for word in line.split())), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
