"""The engine's ticks: who shares a call, who joins, who leaves, and what a failure takes with it."""

from __future__ import annotations

import dataclasses
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from storage.model_catalog import ModelEntry
from tests.painting import LIBRARY_WARNINGS, make_painting, paint_together, psnr, running_engine
from tests.studio import WAIT_SECONDS, Studio, folder, held_at_first_step, loaded, studio, until
from tests.tiny_models import tiny_entry
from worker import sample as sample_module
from worker.errors import Cancelled, InternalError, JobFailed, ModelUnavailable, OutOfMemory, TimedOut, WorkerUnfit
from worker.loading import LoadedModel
from worker.walks import take_steps

__all__ = ["folder", "loaded", "studio"]

pytestmark = LIBRARY_WARNINGS


def test_samples_of_all_jobs_share_a_call_and_only_guided_ones_take_two_rows(studio: Studio) -> None:
    gate, first = held_at_first_step(studio, job_id="first", num_inference_steps=3)
    second = studio.begin(job_id="second", num_inference_steps=3, guidance_scale=1.0, seeds=(1, 2))
    until(lambda: studio.num_jobs() == 2)
    gate.open()
    first.result()
    second.result()
    assert studio.watched.rows == [2, 2 + 2, 2 + 2, 2]


def test_a_new_job_joins_between_two_steps_of_a_running_one(studio: Studio) -> None:
    gate, long = held_at_first_step(studio, job_id="long", num_inference_steps=30)
    short = studio.begin(job_id="short", num_inference_steps=1)
    until(lambda: studio.has("short"))
    gate.pass_one()
    gate.wait()
    gate.pass_one()
    short.result(WAIT_SECONDS)
    assert studio.engine.progress()["long"] == (2, 30)
    gate.open()
    assert len(long.result()) == 1


def test_a_group_above_the_batch_limit_is_split_evenly(studio: Studio) -> None:
    studio.engine.paint(make_painting(seeds=tuple(range(5)), num_inference_steps=2, guidance_scale=1.0))
    assert studio.watched.rows == [3, 2, 3, 2]


def test_jobs_of_different_sizes_do_not_share_a_call(studio: Studio) -> None:
    gate, small = held_at_first_step(studio, job_id="small", num_inference_steps=2)
    big = studio.begin(job_id="big", size=128, num_inference_steps=1)
    until(lambda: studio.num_jobs() == 2)
    gate.open()
    assert small.result()[0].shape == (64, 64, 3)
    assert big.result()[0].shape == (128, 128, 3)
    assert studio.watched.rows == [2, 2, 2]


def test_a_cancelled_job_leaves_within_one_step_and_the_other_goes_on(studio: Studio) -> None:
    gate, going = held_at_first_step(studio, job_id="going", num_inference_steps=6)
    leaving = studio.begin(job_id="leaving", num_inference_steps=6)
    until(lambda: studio.num_jobs() == 2)
    gate.pass_one()
    gate.wait()
    assert studio.watched.rows == [2, 4]
    studio.engine.cancel("leaving")
    gate.open()
    with pytest.raises(Cancelled):
        leaving.result(WAIT_SECONDS)
    assert len(going.result()) == 1
    assert studio.watched.rows == [2, 4, 2, 2, 2, 2]


def test_a_job_past_its_deadline_leaves_within_one_step(studio: Studio) -> None:
    gate, late = held_at_first_step(studio, num_inference_steps=9, deadline=time.monotonic() + 0.2)
    time.sleep(0.25)
    gate.open()
    with pytest.raises(TimedOut):
        late.result(WAIT_SECONDS)
    assert studio.watched.rows == [2]


def test_a_job_can_be_cancelled_while_its_model_loads(folder: Path, loaded: LoadedModel) -> None:
    may_load = threading.Event()

    def load(_entry: ModelEntry) -> LoadedModel:
        assert may_load.wait(WAIT_SECONDS)
        return loaded

    with running_engine(tiny_entry("tiny", folder), load=load) as engine, ThreadPoolExecutor(1) as threads:
        painting = threads.submit(engine.paint, make_painting())
        until(lambda: engine.pulse().activity == "loading")
        assert engine.progress() == {"job": (0, 5)}
        engine.cancel("job")
        with pytest.raises(Cancelled):
            painting.result(WAIT_SECONDS)
        assert engine.resident_models() == frozenset()
        may_load.set()
        until(lambda: engine.resident_models() == {"tiny"})


def test_progress_and_pulse_tell_what_the_engine_does(studio: Studio) -> None:
    assert studio.engine.pulse().activity == "idle"
    gate, running = held_at_first_step(studio, num_inference_steps=10, strength=0.5, seeds=(1, 2))
    assert studio.engine.progress() == {"job": (0, 5)}
    gate.pass_one()
    gate.wait()
    assert studio.engine.progress() == {"job": (1, 5)}
    pulse = studio.engine.pulse()
    assert pulse.activity == "painting"
    time.sleep(0.05)
    assert studio.engine.pulse() == pulse, "no sign of life while a call hangs"
    gate.open()
    running.result()
    assert studio.engine.progress() == {}


def test_out_of_memory_halves_the_batch_and_every_picture_is_made(studio: Studio) -> None:
    def fits_three_rows(latents: torch.Tensor, _conditioning: torch.Tensor) -> None:
        if latents.shape[0] > 3:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    painting = make_painting(seeds=(1, 2, 3, 4), num_inference_steps=2)
    expected = studio.engine.paint(painting)
    studio.watched.rows.clear()
    studio.watched.before = fits_three_rows
    pictures = studio.engine.paint(painting)
    assert min(psnr(one, other) for one, other in zip(expected, pictures, strict=True)) >= 50
    assert studio.watched.rows == [8, 4, 2, 2, 4, 2, 2, 2, 2, 2, 2]
    assert "batch_halved" in [line["event"] for line in studio.log]


def test_where_the_common_scheduler_step_does_not_fit_each_takes_its_own_and_the_pictures_are_the_same(
    studio: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    painting = make_painting(seeds=(1, 2, 3), scheduler="EulerAncestralDiscreteScheduler")
    expected = studio.engine.paint(painting)
    tried: list[int] = []

    def only_alone(**arguments: Any) -> Any:
        tried.append(len(arguments["walks"]))
        if tried[-1] > 1:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return take_steps(**arguments)

    monkeypatch.setattr(sample_module, "take_steps", only_alone)
    pictures = studio.engine.paint(painting)
    assert tried[:4] == [3, 1, 1, 1]
    for made, before in zip(pictures, expected, strict=True):
        assert np.abs(made.astype(int) - before).max() <= 1


def test_only_the_job_that_does_not_fit_alone_fails_with_out_of_memory(studio: Studio) -> None:
    def small_fits(latents: torch.Tensor, _conditioning: torch.Tensor) -> None:
        if latents.shape[-1] > 8:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes.")

    studio.watched.before = small_fits
    big = studio.begin(job_id="big", size=128)
    small = studio.begin(job_id="small")
    with pytest.raises(OutOfMemory):
        big.result()
    assert len(small.result()) == 1


def test_an_error_fails_only_the_job_it_belongs_to(studio: Studio) -> None:
    poison = studio.models["tiny"].prompts.encode("poison")

    def no_poison(_latents: torch.Tensor, conditioning: torch.Tensor) -> None:
        if any(torch.equal(row, poison.hidden[0]) for row in conditioning):
            raise ValueError("a secret that must not be shown")

    paintings = [make_painting(job_id=f"good-{index}", seeds=(index,)) for index in range(3)]
    expected = [studio.engine.paint(painting) for painting in paintings]
    gate, running = held_at_first_step(studio, job_id="running", num_inference_steps=2)
    bad = studio.begin(job_id="bad", prompt="poison")
    good = [studio.threads.submit(studio.engine.paint, painting) for painting in paintings]
    until(lambda: studio.num_jobs() == 5)
    studio.watched.before = no_poison
    gate.open()
    with pytest.raises(InternalError) as failure:
        bad.result()
    assert "secret" not in failure.value.message
    assert [line["jobs"] for line in studio.log if line["event"] == "painting_failed"][-1] == ["bad"]
    assert len(running.result()) == 1
    for one, other in zip(expected, good, strict=True):
        assert psnr(one[0], other.result()[0]) >= 50


def test_values_that_are_no_picture_fail_the_job(studio: Studio) -> None:
    def spoil(latents: torch.Tensor, _conditioning: torch.Tensor) -> None:
        latents.fill_(float("nan"))

    studio.watched.before = spoil
    with pytest.raises(InternalError, match="no picture"):
        studio.engine.paint(make_painting())


def test_a_lost_device_makes_the_worker_unfit_and_every_job_hears_of_it(studio: Studio) -> None:
    gate, first = held_at_first_step(studio, job_id="first")
    second = studio.begin(job_id="second")
    until(lambda: studio.num_jobs() == 2)

    def lose_device(_latents: torch.Tensor, _conditioning: torch.Tensor) -> None:
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    studio.watched.before = lose_device
    gate.open()
    for painting in (first, second):
        with pytest.raises(WorkerUnfit):
            painting.result(WAIT_SECONDS)
    assert isinstance(studio.engine.unfit, WorkerUnfit)
    with pytest.raises(WorkerUnfit):
        studio.engine.paint(make_painting())


def test_an_engine_that_stops_gives_its_jobs_back(studio: Studio) -> None:
    gate, running = held_at_first_step(studio, num_inference_steps=50)
    stopping = studio.threads.submit(studio.engine.stop)
    gate.open()
    with pytest.raises(WorkerUnfit):
        running.result(WAIT_SECONDS)
    stopping.result()
    assert studio.engine.unfit is None


def test_an_unknown_model_and_an_unknown_scheduler_fail_the_job(studio: Studio) -> None:
    with pytest.raises(ModelUnavailable):
        studio.engine.paint(make_painting("nowhere"))
    with pytest.raises(InternalError):
        studio.engine.paint(make_painting(scheduler="KarrasVeScheduler"))


def test_a_prompt_is_encoded_once_for_all_samples_and_jobs(studio: Studio) -> None:
    prompts = studio.models["tiny"].prompts
    before = prompts.encodes
    studio.engine.paint(make_painting(prompt="the first dog", negative_prompt="the cat", seeds=(1, 2, 3)))
    studio.engine.paint(make_painting(prompt="the cat", negative_prompt="the first dog"))
    assert prompts.encodes == before + 2


def test_no_sample_sees_a_neighbours_prompt_mask_or_seed(studio: Studio) -> None:
    base = make_painting(job_id="watched", num_inference_steps=4)
    flipped = np.flipud(base.mask).copy()
    neighbours = [
        dataclasses.replace(base, job_id="n1", prompt="a blue dog"),
        dataclasses.replace(base, job_id="n2", seeds=(8,)),
        dataclasses.replace(base, job_id="n3", mask=flipped, picture=255 - base.picture),
    ]
    alone = [studio.engine.paint(painting)[0] for painting in [base, *neighbours]]
    together = [pictures[0] for pictures in paint_together(studio.engine, [base, *neighbours])]
    likeness = np.array([[psnr(one, other) for other in together] for one in alone])
    assert (likeness.argmax(axis=1) == range(4)).all()
    assert likeness.diagonal().min() >= 50
    assert likeness[~np.eye(4, dtype=bool)].max() < 45


def test_every_failure_has_a_code_and_a_sentence() -> None:
    families = JobFailed.__subclasses__()
    assert len({family.code for family in families}) == len(families) >= 12
    for family in families:
        assert family().message.endswith(".")
