"""Short work on the device beside painting: in the engine's thread, between two ticks, its faults its own."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from tests.painting import LIBRARY_WARNINGS, running_engine
from tests.studio import WAIT_SECONDS, Studio, folder, held_at_first_step, loaded, studio, until
from tests.tiny_models import tiny_entry
from worker.engine import Engine
from worker.errors import InternalError, OutOfMemory, SafetyCheckerUnavailable, WorkerUnfit
from worker.loading import LoadedModel

__all__ = ["folder", "loaded", "studio"]

pytestmark = LIBRARY_WARNINGS


def waiting_errands(engine: Engine) -> int:
    return len(engine._errands)


def test_errands_are_done_in_the_engines_thread_one_between_two_ticks(studio: Studio) -> None:
    gate, painting = held_at_first_step(studio, num_inference_steps=4)
    done: list[tuple[str, int, bool]] = []

    def look() -> int:
        done.append((threading.current_thread().name, len(studio.watched.rows), torch.is_inference_mode_enabled()))
        return len(done)

    with ThreadPoolExecutor(2) as pool:
        asked = [pool.submit(studio.engine.aside, look) for _ in range(2)]
        until(lambda: waiting_errands(studio.engine) == 2)
        for calls in (1, 2):
            assert len(done) == calls - 1
            gate.pass_one()
            gate.wait()
        gate.open()
        assert sorted(each.result(WAIT_SECONDS) for each in asked) == [1, 2]
    assert painting.result(WAIT_SECONDS)
    assert done == [("engine", 1, True), ("engine", 2, True)]


def test_an_idle_engine_does_them_at_once(studio: Studio) -> None:
    assert studio.engine.aside(lambda: "done") == "done"
    until(lambda: studio.engine.pulse().activity == "idle")


def test_the_engine_alone_calculates_with_several_threads(folder: Path) -> None:
    counts = []
    with running_engine(tiny_entry("tiny", folder), torch_threads=2) as engine:
        other = threading.Thread(target=lambda: counts.append(torch.get_num_threads()))
        other.start()
        other.join()
        counts += [torch.get_num_threads(), engine.aside(torch.get_num_threads)]
    assert counts == [1, 1, 2]


def test_the_watchdog_sees_an_errand_that_does_not_end(studio: Studio) -> None:
    end = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(studio.engine.aside, lambda: end.wait(WAIT_SECONDS))
        until(lambda: studio.engine.pulse().activity == "painting")
        since = studio.engine.pulse().since
        assert studio.engine.pulse().since == since
        end.set()
        assert asked.result(WAIT_SECONDS)


@pytest.mark.parametrize(
    ("raised", "told"),
    [
        (SafetyCheckerUnavailable(), SafetyCheckerUnavailable),
        (torch.OutOfMemoryError("full"), OutOfMemory),
        (ValueError("secret"), InternalError),
    ],
)
def test_what_goes_wrong_with_one_is_told_to_who_asked_and_the_engine_goes_on(
    studio: Studio, raised: Exception, told: type[Exception]
) -> None:
    def break_down() -> None:
        raise raised

    with pytest.raises(told):
        studio.engine.aside(break_down)
    assert studio.engine.aside(lambda: "well") == "well"
    assert studio.engine.unfit is None


def test_a_lost_device_ends_the_engine_and_all_that_wait(studio: Studio) -> None:
    def lose_the_device() -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    with pytest.raises(WorkerUnfit):
        studio.engine.aside(lose_the_device)
    with pytest.raises(WorkerUnfit):
        studio.engine.aside(lambda: None)
    assert studio.engine.unfit is not None


def test_errands_that_wait_when_the_engine_stops_are_given_up(folder: Path, loaded: LoadedModel) -> None:
    begun, end = threading.Event(), threading.Event()

    def hold_on() -> None:
        begun.set()
        end.wait(WAIT_SECONDS)

    with running_engine(tiny_entry("tiny", folder), load=lambda _: loaded) as engine, ThreadPoolExecutor(3) as pool:
        pool.submit(engine.aside, hold_on)
        assert begun.wait(WAIT_SECONDS)
        waiting = pool.submit(engine.aside, lambda: None)
        until(lambda: waiting_errands(engine) == 2)
        stopped = pool.submit(engine.stop)
        until(lambda: engine._stopping)
        end.set()
        stopped.result(WAIT_SECONDS)
        with pytest.raises(WorkerUnfit):
            waiting.result(WAIT_SECONDS)
        with pytest.raises(WorkerUnfit):
            engine.aside(lambda: None)
