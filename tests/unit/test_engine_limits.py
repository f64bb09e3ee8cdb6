"""What bounds the engine, and what it keeps: memory in flight, models in turns, encodings by content."""

from __future__ import annotations

import dataclasses
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from storage.model_catalog import ModelEntry
from tests.painting import LIBRARY_WARNINGS, load_on_cpu, make_painting, running_engine
from tests.studio import WAIT_SECONDS, Studio, WatchedUNet, folder, held_at_first_step, loaded, studio, until
from tests.tiny_models import tiny_entry
from worker.encodings import PictureEncodings
from worker.loading import LoadedModel
from worker.model_files import count_weights, find_files
from worker.preparing import begin_samples
from worker.runs import Run

__all__ = ["folder", "loaded", "studio"]

pytestmark = LIBRARY_WARNINGS


def test_what_is_in_flight_stays_within_the_byte_budget_and_everyone_gets_done(
    folder: Path, loaded: LoadedModel
) -> None:
    one_run = Run(make_painting(), model=loaded).size_bytes
    watched = WatchedUNet(loaded.unet)
    model = dataclasses.replace(loaded, unet=watched)
    with (
        running_engine(
            tiny_entry("tiny", folder), load=lambda _entry: model, flight_bytes=int(2.5 * one_run)
        ) as engine,
        ThreadPoolExecutor(7) as threads,
    ):
        jobs = [make_painting(job_id=f"job-{n}", seeds=(n,), guidance_scale=1.0) for n in range(7)]
        done = list(threads.map(engine.paint, jobs))
    assert len(done) == 7
    assert max(watched.rows) == 2, "two fit, a third does not"


def test_a_job_larger_than_the_budget_is_painted_alone(folder: Path, loaded: LoadedModel) -> None:
    watched = WatchedUNet(loaded.unet)
    model = dataclasses.replace(loaded, unet=watched)
    with (
        running_engine(tiny_entry("tiny", folder), load=lambda _entry: model, flight_bytes=1) as engine,
        ThreadPoolExecutor(3) as threads,
    ):
        jobs = [make_painting(job_id=f"job-{n}", guidance_scale=1.0) for n in range(3)]
        assert len(list(threads.map(engine.paint, jobs))) == 3
    assert set(watched.rows) == {1}


def test_a_run_knows_what_it_holds(loaded: LoadedModel) -> None:
    painting = make_painting(seeds=(1, 2))
    [first, second] = begin_samples(loaded, painting)
    tensors = {
        id(tensor): tensor.nbytes
        for sample in (first, second)
        for tensor in (sample.latents, sample.noise, sample.masked_latents)
        if tensor is not None
    }
    pictures = 2 * 64 * 64 * 3
    assert Run(painting, model=loaded).size_bytes > sum(tensors.values()) + pictures
    larger = Run(make_painting(size=128, seeds=(1, 2)), model=loaded).size_bytes
    assert larger == 4 * Run(painting, model=loaded).size_bytes


def test_two_models_that_do_not_fit_together_take_turns(folder: Path, loaded: LoadedModel) -> None:
    entries = [tiny_entry(name, folder) for name in ("one", "two")]
    loads: list[str] = []

    def load(entry: ModelEntry) -> LoadedModel:
        loads.append(entry.id)
        return dataclasses.replace(loaded, id=entry.id)

    room_for_one = count_weights(find_files(entries[0].source)) * 4
    stop = threading.Event()
    with (
        running_engine(*entries, load=load, budget_bytes=room_for_one, turn_seconds=0.1) as engine,
        ThreadPoolExecutor(3) as threads,
    ):

        def keep_busy(name: str) -> int:
            count = 0
            while not stop.is_set():
                engine.paint(make_painting("one", job_id=f"{name}-{count}", num_inference_steps=3))
                count += 1
            return count

        busy = [threads.submit(keep_busy, name) for name in ("a", "b")]
        until(lambda: loads == ["one"])
        for _ in range(3):
            threads.submit(engine.paint, make_painting("two", job_id="other")).result(WAIT_SECONDS)
        stop.set()
        assert all(each.result(WAIT_SECONDS) > 0 for each in busy)
    assert loads.count("two") >= 1
    assert loads.count("one") >= 2, "it came back"


def test_a_job_that_arrives_while_a_bigger_one_runs_starts_within_two_of_its_steps(studio: Studio) -> None:
    gate, big = held_at_first_step(studio, job_id="big", size=128, seeds=tuple(range(8)), num_inference_steps=40)
    small = studio.begin(job_id="small", num_inference_steps=1)
    until(lambda: studio.has("small"))
    # Eight pictures make two calls a step; the first of them is held.
    while not small.done():
        gate.pass_one()
        until(lambda: small.done() or gate.reached.acquire(timeout=0.05))
        if studio.engine.progress()["big"][0] > 2:
            break
    assert len(small.result(WAIT_SECONDS)) == 1
    assert studio.engine.progress()["big"][0] <= 2
    studio.engine.cancel("big")
    gate.open()
    assert big.exception(WAIT_SECONDS) is not None


def test_a_picture_is_encoded_once_for_all_jobs_and_the_result_is_the_same(studio: Studio) -> None:
    encodings = studio.models["tiny"].encodings
    painting = make_painting(seeds=(1, 2), strength=0.7, picture=np.full((64, 64, 3), 77, np.uint8))
    before = encodings.encodes
    first = studio.engine.paint(painting)
    assert encodings.encodes == before + 2, "the picture, and the picture less its mask"
    again = studio.engine.paint(painting)
    assert encodings.encodes == before + 2
    assert np.array_equal(first, again)
    studio.engine.paint(dataclasses.replace(painting, mask=painting.mask.T.copy()))
    assert encodings.encodes == before + 3, "another mask leaves another picture"


def test_encodings_are_kept_up_to_their_capacity() -> None:
    made: list[bytes] = []

    def encode(key: bytes) -> torch.Tensor:
        made.append(key)
        return torch.zeros(100)

    kept = PictureEncodings(2 * 400)
    for key in (b"a", b"b", b"a", b"c", b"a", b"b"):
        kept.get(key, lambda key=key: encode(key))  # type: ignore[misc]
        assert kept.held_bytes <= 800
    assert made == [b"a", b"b", b"c", b"b"]
    nothing = PictureEncodings(0)
    assert torch.equal(nothing.get(b"a", lambda: torch.ones(1)), torch.ones(1))
    assert nothing.held_bytes == 0


@pytest.mark.parametrize("channels", [9, 4])
def test_only_what_the_model_needs_is_encoded(folder: Path, channels: int) -> None:
    from tests.tiny_models import make_tiny_model  # noqa: PLC0415  # for this one test

    model = load_on_cpu(tiny_entry("m", make_tiny_model(folder.parent, channels=channels)))
    with torch.inference_mode():
        begin_samples(model, make_painting(seeds=(1, 2, 3)))
    assert model.encodings.encodes == 1, "the masked picture, or the picture: never both at full strength"
