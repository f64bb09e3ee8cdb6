"""Which models stay in memory: loaded once, evicted when idle, never taken from a job, each gets its turn."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from storage.model_catalog import ModelEntry
from tests.painting import LIBRARY_WARNINGS, load_on_cpu
from tests.tiny_models import catalog_of, make_tiny_model, tiny_entry
from worker.errors import Cancelled, ModelUnavailable
from worker.loading import LoadedModel
from worker.model_files import BadModelFiles, count_weights, find_files
from worker.models import ResidentModels

pytestmark = LIBRARY_WARNINGS

WAIT_SECONDS = 20
TURN_SECONDS = 0.3


class Loader:
    """Loads at once or when the test says so, and counts. (The models here are the real tiny one.)"""

    def __init__(self, model: LoadedModel) -> None:
        self.model = model
        self.loads: list[str] = []
        self.may_load = threading.Event()
        self.may_load.set()
        self.failure: Exception | None = None

    def __call__(self, entry: ModelEntry) -> LoadedModel:
        self.loads.append(entry.id)
        assert self.may_load.wait(WAIT_SECONDS)
        if self.failure is not None:
            raise self.failure
        return self.model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.getbasetemp() / "tiny-models")


@pytest.fixture
def loader(folder: Path) -> Iterator[Loader]:
    with capture_logs():
        yield Loader(load_on_cpu(tiny_entry("any", folder)))


@pytest.fixture
def two_fit(folder: Path, loader: Loader) -> ResidentModels:
    """Models one, two and three, of which any two fit together."""
    entries = [tiny_entry(name, folder) for name in ("one", "two", "three")]
    size = count_weights(find_files(entries[0].source))
    return ResidentModels(
        catalog_of(*entries), loader, budget_bytes=2 * size, bytes_per_weight=1, turn_seconds=TURN_SECONDS
    )


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as pool:
        yield pool


def stay() -> None:
    """The check of a job that nothing makes leave."""


def use(models: ResidentModels, name: str) -> None:
    with models.hold(name, stay):
        pass


class Holder:
    """A job that holds a model in a thread of its own until it is told to let go."""

    def __init__(self, threads: ThreadPoolExecutor, models: ResidentModels, name: str) -> None:
        self.holds = threading.Event()
        self._let_go = threading.Event()
        self._future: Future[Any] = threads.submit(self._hold, models, name)

    def _hold(self, models: ResidentModels, name: str) -> None:
        with models.hold(name, stay):
            self.holds.set()
            assert self._let_go.wait(WAIT_SECONDS)

    def let_go(self) -> None:
        self._let_go.set()
        self._future.result(WAIT_SECONDS)


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + WAIT_SECONDS
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)


def test_a_model_is_loaded_once_for_all_who_want_it(
    two_fit: ResidentModels, loader: Loader, threads: ThreadPoolExecutor
) -> None:
    loader.may_load.clear()
    users = [threads.submit(use, two_fit, "one") for _ in range(4)]
    until(lambda: two_fit.loading_since() is not None)
    assert two_fit.names() == frozenset()
    loader.may_load.set()
    for user in users:
        user.result(WAIT_SECONDS)
    assert loader.loads == ["one"]
    assert two_fit.loading_since() is None
    assert two_fit.names() == {"one"}


def test_the_model_longest_unused_makes_room(two_fit: ResidentModels) -> None:
    for name in ("one", "two", "one", "three"):
        use(two_fit, name)
    assert two_fit.names() == {"one", "three"}


def test_a_model_in_use_is_never_evicted(two_fit: ResidentModels, threads: ThreadPoolExecutor) -> None:
    holder = Holder(threads, two_fit, "one")
    assert holder.holds.wait(WAIT_SECONDS)
    for name in ("two", "three", "two"):
        use(two_fit, name)
    assert two_fit.names() == {"one", "two"}
    holder.let_go()


def test_a_model_without_room_waits_until_one_falls_idle(two_fit: ResidentModels, threads: ThreadPoolExecutor) -> None:
    one, two = Holder(threads, two_fit, "one"), Holder(threads, two_fit, "two")
    assert one.holds.wait(WAIT_SECONDS)
    assert two.holds.wait(WAIT_SECONDS)
    three = Holder(threads, two_fit, "three")
    assert not three.holds.wait(0.1)
    one.let_go()
    assert three.holds.wait(WAIT_SECONDS)
    assert two_fit.names() == {"two", "three"}
    two.let_go()
    three.let_go()


def test_what_is_loading_or_waits_for_room_is_what_jobs_should_be_taken_for(
    two_fit: ResidentModels, loader: Loader, threads: ThreadPoolExecutor
) -> None:
    assert two_fit.favoured() == frozenset()
    loader.may_load.clear()
    one = Holder(threads, two_fit, "one")
    until(lambda: two_fit.favoured() == {"one"})
    assert two_fit.names() == frozenset()
    loader.may_load.set()
    two = Holder(threads, two_fit, "two")
    assert two.holds.wait(WAIT_SECONDS)
    assert two_fit.favoured() == {"one", "two"}
    three = Holder(threads, two_fit, "three")
    until(lambda: two_fit.favoured() == {"three"})
    one.let_go()
    assert three.holds.wait(WAIT_SECONDS)
    assert two_fit.favoured() == {"two", "three"}
    two.let_go()
    three.let_go()


def test_a_trace_of_three_models_where_two_fit(two_fit: ResidentModels, loader: Loader) -> None:
    """The one longest unused leaves, however often it was used before."""
    resident = []
    for name in ("one", "one", "two", "one", "three", "three", "one", "two", "three", "one"):
        use(two_fit, name)
        resident.append("+".join(sorted(two_fit.names())))
    assert loader.loads == ["one", "two", "three", "two", "three", "one"]
    assert resident[4:] == ["one+three"] * 3 + ["one+two", "three+two", "one+three"]


def test_a_model_that_waited_its_time_gets_its_turn_before_new_jobs_of_the_busy_ones(
    two_fit: ResidentModels, threads: ThreadPoolExecutor
) -> None:
    one, two = Holder(threads, two_fit, "one"), Holder(threads, two_fit, "two")
    assert one.holds.wait(WAIT_SECONDS)
    assert two.holds.wait(WAIT_SECONDS)
    three = Holder(threads, two_fit, "three")
    early = Holder(threads, two_fit, "one")
    assert early.holds.wait(WAIT_SECONDS), "the busy model goes on at first"
    early.let_go()
    time.sleep(TURN_SECONDS * 1.5)
    late = Holder(threads, two_fit, "one")
    assert not late.holds.wait(0.3)
    one.let_go()
    assert three.holds.wait(WAIT_SECONDS)
    three.let_go()
    two.let_go()
    assert late.holds.wait(WAIT_SECONDS), "and then comes back"
    late.let_go()


def test_a_model_above_the_budget_is_loaded_alone(folder: Path, loader: Loader) -> None:
    entries = tiny_entry("one", folder), tiny_entry("two", folder)
    models = ResidentModels(catalog_of(*entries), loader, budget_bytes=1, bytes_per_weight=4, turn_seconds=TURN_SECONDS)
    for name in ("one", "two"):
        use(models, name)
        assert models.names() == {name}


@pytest.mark.parametrize(
    ("failure", "told"),
    [(BadModelFiles("unet is broken"), "unet is broken"), (RuntimeError("/secret/path"), "cannot be loaded.$")],
)
def test_a_model_that_cannot_be_loaded_fails_its_jobs_and_may_be_tried_again(
    two_fit: ResidentModels, loader: Loader, failure: Exception, told: str
) -> None:
    loader.failure = failure
    with pytest.raises(ModelUnavailable, match=told) as refusal:
        use(two_fit, "one")
    assert "secret" not in refusal.value.message
    assert two_fit.names() == frozenset()
    loader.failure = None
    use(two_fit, "one")
    assert two_fit.names() == {"one"}


def test_a_job_may_leave_while_it_waits_for_room(two_fit: ResidentModels, threads: ThreadPoolExecutor) -> None:
    holders = [Holder(threads, two_fit, name) for name in ("one", "two")]
    for holder in holders:
        assert holder.holds.wait(WAIT_SECONDS)
    leave = threading.Event()

    def check() -> None:
        if leave.is_set():
            raise Cancelled

    def wait_for_three() -> None:
        with two_fit.hold("three", check):
            pass

    waiting = threads.submit(wait_for_three)
    leave.set()
    with pytest.raises(Cancelled):
        waiting.result(WAIT_SECONDS)
    for holder in holders:
        holder.let_go()
    use(two_fit, "three")
