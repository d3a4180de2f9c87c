"""Processes that are killed at a chosen step in the file system, to see what they leave behind.

Meant for scripts that a test starts by itself: they fork, which a process with threads should not do.
"""

import os
import random
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

STEPS = {"open", "ctypes.dlsym", "os.mkdir", "os.link", "os.rename", "os.remove", "os.rmdir", "os.chmod", "shutil.rmtree", "fsync"}
"""What counts as a step, as Python's audit hooks name it; folders are exchanged through ctypes."""


def steps_of(work: Callable[[], object], killed_at: int | None = None) -> int | None:
    """Does ``work`` in another process, which dies before the step ``killed_at``; gives how many steps it took, None if it died.

    Nothing is synced to the disk: no plug is pulled here, and it takes long.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        taken = _count_steps(killed_at)
        work()
        os.write(writing, str(taken()).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as report:
        steps = report.read()
    status = os.waitpid(child, 0)[1]
    died = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    assert died or status == 0, f"the work failed with status {status}"
    return None if died else int(steps)


def _count_steps(killed_at: int | None) -> Callable[[], int]:
    """From now on, in this process."""
    count = 0

    def hook(event: str, _: object) -> None:
        nonlocal count
        if event in STEPS:
            count += 1
            if count == killed_at:
                os.kill(os.getpid(), signal.SIGKILL)

    os.fsync = lambda descriptor: sys.audit("fsync")
    sys.addaudithook(hook)
    return lambda: count


def contents(folder: Path) -> dict[str, bytes]:
    """Every file's bytes."""
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def kill_at_random_steps(
    work: Callable[[], object], target: Path, old: Path, new: dict[str, bytes], unfinished: Path, times: int = 50
) -> tuple[int, int]:
    """Kills ``work``, which is to replace ``target``, and lets it run once more; how often the old and the new folder were found.

    Args:
        work: what makes ``new`` of a copy of ``old``.
        target: the folder that it replaces.
        old: what stands in ``target`` before each run.
        new: what a whole run leaves there.
        unfinished: where ``work`` keeps what is not ready; nothing of it may stay after the second run.
        times: kills, each at another step.
    """
    found = [0, 0]
    shutil.copytree(old, target)
    total = steps_of(work)
    assert total is not None and total > times, f"{total} steps; {times} kills want more"
    assert contents(target) == new, "a run that nobody killed"
    for step in random.Random(0).sample(range(1, total), times):
        shutil.rmtree(target)
        shutil.rmtree(unfinished, ignore_errors=True)
        shutil.copytree(old, target)
        steps_of(work, killed_at=step)
        left = contents(target)
        assert left in (contents(old), new), f"a mixture, killed at step {step}"
        found[left == new] += 1
        steps_of(work)
        assert contents(target) == new, f"the second run, the first killed at step {step}"
        assert not unfinished.exists(), f"left over, killed at step {step}"
    return found[0], found[1]
