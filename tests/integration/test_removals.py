"""Removals in processes of their own: kept warm, killed when they are no longer wanted, gone with their worker."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.painting import make_painting
from tests.removal_scene import assert_gone, disc, wall, with_thing
from worker.errors import Cancelled, InternalError, JobFailed, NothingToContinue, OutOfMemory, TimedOut, WorkerUnfit
from worker.removals import Removals
from worker.removing.fill import STAGES
from worker.sample import Painting

WAIT_SECONDS = 30


@pytest.fixture
def removals() -> Iterator[Removals]:
    started = Removals(1)
    yield started
    started.stop()


def a_removal(**changes: Any) -> Painting:
    mask = np.where(disc(), 255, 0).astype(np.uint8)
    return make_painting("remove", **({"picture": with_thing(wall(), disc()), "mask": mask, "seeds": (7,)} | changes))


def a_long_removal(**changes: Any) -> Painting:
    """Two hundred pictures: more work than any test waits for."""
    return a_removal(seeds=tuple(range(200)), **changes)


def children(of: int = 0) -> set[int]:
    """The removal processes that a process (this one) has started."""
    found = subprocess.run(
        ["pgrep", "-P", str(of or os.getpid()), "-f", "worker.removing"], capture_output=True, text=True, check=False
    )
    return {int(line) for line in found.stdout.split()}


def until(condition: Any) -> None:
    end = time.monotonic() + WAIT_SECONDS
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def begun(removals: Removals, painting: Painting) -> tuple[threading.Thread, list[BaseException]]:
    """The painting in a thread, once there is a process for it; what it raises goes into the list."""
    raised: list[BaseException] = []

    def paint() -> None:
        try:
            list(removals.paint_each(painting))
        except (JobFailed, WorkerUnfit) as error:
            raised.append(error)

    thread = threading.Thread(target=paint)
    thread.start()
    until(lambda: children() or raised)
    return thread, raised


def test_every_seed_has_its_picture_and_the_process_is_used_again(removals: Removals) -> None:
    ((index, first),) = removals.paint_each(a_removal())
    assert index == 0
    assert_gone(first)
    before = children()
    pictures = dict(removals.paint_each(a_removal(seeds=(7, 8))))
    assert np.array_equal(pictures[0], first)
    assert_gone(pictures[1])
    assert len(before) == 1
    assert children() == before


def test_the_child_has_no_torch() -> None:
    loaded = "import sys, worker.removing.__main__; print('torch' in sys.modules, 'storage' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", loaded], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


def test_a_cancel_kills_the_process_and_the_next_removal_gets_another(removals: Removals) -> None:
    thread, raised = begun(removals, a_long_removal())
    (killed,) = children()
    cancelled_at = time.monotonic()
    removals.cancel("job")
    thread.join(WAIT_SECONDS)
    assert time.monotonic() - cancelled_at < 2
    assert [type(error) for error in raised] == [Cancelled]
    assert killed not in children()
    assert not Path(f"/proc/{killed}").exists()
    assert removals.progress() == {}
    ((_, picture),) = removals.paint_each(a_removal())
    assert_gone(picture)


def test_the_deadline_kills_the_process(removals: Removals) -> None:
    with pytest.raises(TimedOut):
        list(removals.paint_each(a_long_removal(deadline=time.monotonic() + 1.0)))
    assert not children()


def test_who_waits_for_a_process_can_be_cancelled_too(removals: Removals) -> None:
    running, _ = begun(removals, a_long_removal())
    waiting, raised = begun(removals, a_removal(job_id="another"))
    until(lambda: "another" in removals.progress())
    removals.cancel("another")
    waiting.join(WAIT_SECONDS)
    assert [type(error) for error in raised] == [Cancelled]
    assert len(children()) == 1
    removals.cancel("job")
    running.join(WAIT_SECONDS)


def test_whoever_stops_taking_pictures_ends_the_process(removals: Removals) -> None:
    painted = removals.paint_each(a_long_removal())
    next(painted)
    painted.close()
    assert not children()


def test_progress_counts_stages(removals: Removals) -> None:
    seen = set()
    thread, _ = begun(removals, a_removal())
    while thread.is_alive():
        seen |= set(removals.progress().values())
        time.sleep(0.01)
    assert {num_stages for _, num_stages in seen} == {STAGES}
    assert len({stage for stage, _ in seen}) > 1


def test_a_stop_ends_all_and_the_jobs_are_for_another_worker(removals: Removals) -> None:
    thread, raised = begun(removals, a_long_removal())
    removals.stop()
    thread.join(WAIT_SECONDS)
    assert [type(error) for error in raised] == [WorkerUnfit]
    assert not children()
    with pytest.raises(WorkerUnfit):
        list(removals.paint_each(a_removal()))


@pytest.mark.parametrize(("number", "failure"), [(signal.SIGSEGV, InternalError), (signal.SIGKILL, OutOfMemory)])
def test_a_process_that_dies_fails_its_job_only(
    removals: Removals, number: signal.Signals, failure: type[JobFailed]
) -> None:
    thread, raised = begun(removals, a_long_removal())
    (child,) = children()
    os.kill(child, number)
    thread.join(WAIT_SECONDS)
    assert [type(error) for error in raised] == [failure]
    ((_, picture),) = removals.paint_each(a_removal())
    assert_gone(picture)


def test_a_process_that_is_killed_while_idle_is_replaced_even_before_it_is_dead(removals: Removals) -> None:
    list(removals.paint_each(a_removal()))
    for _ in range(10):
        (child,) = children()
        os.kill(child, signal.SIGKILL)
        ((_, picture),) = removals.paint_each(a_removal())
        assert_gone(picture)


def test_a_deadline_is_kept_while_an_idle_process_does_not_answer(removals: Removals) -> None:
    list(removals.paint_each(a_removal()))
    (child,) = children()
    os.kill(child, signal.SIGSTOP)
    with pytest.raises(TimedOut):
        list(removals.paint_each(a_removal(deadline=time.monotonic() + 0.5)))
    assert child not in children()


def test_no_room_for_another_process_is_told_as_such(removals: Removals, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.ENOMEM, "no room")

    list(removals.paint_each(a_removal()))
    removals.stop()
    again = Removals(1)
    files = len(list(Path("/proc/self/fd").iterdir()))
    monkeypatch.setattr(subprocess, "Popen", refuse)
    with pytest.raises(OutOfMemory):
        list(again.paint_each(a_removal()))
    assert len(list(Path("/proc/self/fd").iterdir())) == files


def test_a_lower_limit_of_memory_stays(removals: Removals) -> None:
    program = "import resource; resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30))\n" + PARENT_OF_ONE
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "painted\n", done.stderr


def test_a_mask_over_everything_names_the_mask(removals: Removals) -> None:
    with pytest.raises(NothingToContinue) as failed:
        list(removals.paint_each(a_removal(mask=np.full_like(disc(), 255, np.uint8))))
    assert failed.value.field == "mask_image"


PARENT_OF_ONE = """
from tests.integration.test_removals import a_removal
from worker.removals import Removals
removals = Removals(1)
for _ in removals.paint_each(a_removal()):
    print("painted", flush=True)
removals.stop()
"""
PARENT = """
from tests.integration.test_removals import a_long_removal
from worker.removals import Removals
for _ in Removals(1).paint_each(a_long_removal()):
    print("painted", flush=True)
"""


def test_a_worker_killed_outright_leaves_no_process_behind() -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT],
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert parent.stdout is not None
    assert parent.stdout.readline() == "painted\n"
    (child,) = children(parent.pid)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    until(lambda: not Path(f"/proc/{child}").exists())
