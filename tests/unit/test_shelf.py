"""What is kept in memory for jobs: loaded once, within a budget, and never taken from who uses it."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from worker.errors import Cancelled
from worker.shelf import Shelf

WAIT_SECONDS = 20


@dataclasses.dataclass(frozen=True)
class Thing:
    size_bytes: int


def unhurried() -> None:
    pass


def test_what_was_used_least_recently_leaves_and_what_is_in_use_stays() -> None:
    shelf, loaded = Shelf(30), []

    def take(name: str) -> None:
        with shelf.hold(name, lambda: loaded.append(name) or Thing(10), unhurried):  # type: ignore[func-returns-value]  # None is what it is for
            pass

    for name in ("a", "b", "c", "a", "d"):
        take(name)
    assert shelf.held_bytes == 30
    take("a")
    take("c")
    assert loaded == ["a", "b", "c", "d"], "b has left, the others are there"
    with shelf.hold("a", pytest.fail, unhurried), shelf.hold("big", lambda: Thing(25), unhurried):  # type: ignore[arg-type]  # kept
        assert shelf.held_bytes == 35, "both in use, and nothing else"
    assert shelf.held_bytes <= 30


def test_a_thing_is_loaded_once_for_all_who_ask_at_once() -> None:
    shelf, may_load, loads = Shelf(100), threading.Event(), []

    def load() -> Thing:
        loads.append(1)
        assert may_load.wait(WAIT_SECONDS)
        return Thing(1)

    def take() -> Thing:
        with shelf.hold("a", load, unhurried) as thing:
            taken: Thing = thing
            return taken

    with ThreadPoolExecutor(4) as threads:
        takers = [threads.submit(take) for _ in range(4)]
        may_load.set()
        assert len({id(taker.result(WAIT_SECONDS)) for taker in takers}) == 1
    assert len(loads) == 1


def test_a_job_may_leave_while_another_loads_and_a_failed_load_is_tried_again() -> None:
    shelf, may_load, entered = Shelf(100), threading.Event(), threading.Event()

    def load() -> Thing:
        entered.set()
        assert may_load.wait(WAIT_SECONDS)
        raise ValueError("broken")

    def take(check: Callable[[], None]) -> None:
        with shelf.hold("a", load, check):
            pytest.fail("nothing to hold")

    def cancelled() -> None:
        raise Cancelled

    with ThreadPoolExecutor(2) as threads:
        first: Future[None] = threads.submit(take, unhurried)
        assert entered.wait(WAIT_SECONDS)
        with pytest.raises(Cancelled):
            take(cancelled)
        may_load.set()
        with pytest.raises(ValueError, match="broken"):
            first.result(WAIT_SECONDS)
    with shelf.hold("a", lambda: Thing(3), unhurried) as thing:
        assert thing == Thing(3)


def test_a_job_that_leaves_while_it_loads_takes_none_of_those_with_it_who_wait_for_the_same() -> None:
    shelf, entered, may_leave = Shelf(100), threading.Event(), threading.Event()
    asked = [threading.Event() for _ in range(2)]

    def load_and_leave() -> Thing:
        entered.set()
        assert may_leave.wait(WAIT_SECONDS)
        raise Cancelled

    def take(has_asked: threading.Event) -> Thing:
        # Asked for the first time when it waits already.
        with shelf.hold("a", lambda: Thing(3), has_asked.set) as thing:
            taken: Thing = thing
            return taken

    def leave() -> None:
        with shelf.hold("a", load_and_leave, unhurried):
            pytest.fail("nothing to hold")

    with ThreadPoolExecutor(3) as threads:
        leaving = threads.submit(leave)
        assert entered.wait(WAIT_SECONDS)
        others = [threads.submit(take, each) for each in asked]
        assert all(each.wait(WAIT_SECONDS) for each in asked)
        may_leave.set()
        with pytest.raises(Cancelled):
            leaving.result(WAIT_SECONDS)
        assert [other.result(WAIT_SECONDS) for other in others] == [Thing(3)] * 2
    assert shelf.loads == 1


# -- versions -------------------------------------------------------------------------------------


def thing() -> Thing:
    return Thing(10)


def test_an_older_version_stays_for_those_who_use_it_and_leaves_with_the_last() -> None:
    shelf = Shelf(1000)
    with shelf.hold("a", thing, unhurried, version=1) as old:
        with shelf.hold("a", thing, unhurried, version=2) as new:
            assert new is not old
            assert shelf.held_bytes == 20
        with shelf.hold("b", thing, unhurried, version=1):
            pass
        assert shelf.held_bytes == 30, "another thing's version is of no matter"
    assert shelf.held_bytes == 20
    with shelf.hold("a", pytest.fail, unhurried, version=2) as kept:  # type: ignore[arg-type]  # kept
        assert kept is new
    with shelf.hold("a", lambda: Thing(5), unhurried, version=3):
        assert shelf.held_bytes == 15, "the last one was in nobody's use"


def test_a_version_that_comes_back_is_the_newest_again() -> None:
    shelf = Shelf(1000)
    with shelf.hold("a", thing, unhurried, version=1) as first:
        with shelf.hold("a", thing, unhurried, version=2):
            pass
        with shelf.hold("a", pytest.fail, unhurried, version=1) as again:  # type: ignore[arg-type]  # in use
            assert again is first
    assert shelf.held_bytes == 10


def test_a_version_that_cannot_be_loaded_takes_none_with_it_that_is_in_use() -> None:
    shelf, loading, may_fail = Shelf(1000), threading.Event(), threading.Event()

    def fail() -> Thing:
        loading.set()
        assert may_fail.wait(WAIT_SECONDS)
        raise ValueError("torn")

    def take() -> None:
        with shelf.hold("a", fail, unhurried, version=2):
            pytest.fail("nothing to hold")

    with ThreadPoolExecutor(1) as threads, shelf.hold("a", thing, unhurried, version=1) as old:
        failing = threads.submit(take)
        assert loading.wait(WAIT_SECONDS)
        with shelf.hold("a", thing, unhurried, version=3):
            may_fail.set()
            with pytest.raises(ValueError, match="torn"):
                failing.result(WAIT_SECONDS)
            assert shelf.held_bytes == 20
        assert old == thing()
    assert shelf.held_bytes == 10
