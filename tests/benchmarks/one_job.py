"""(a) One job through the service, against diffusers' own pipeline called in one process."""

from __future__ import annotations

import io
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np
import torch
from PIL import Image

from storage.model_catalog import Folder, load_catalog
from storage.settings import StorageSettings
from tests.benchmarks.client import inline, picture_bytes, submit
from tests.benchmarks.figures import Findings, Row, milliseconds, quantile
from tests.benchmarks.pictures import Picture, as_png, from_png, middle_mask, photographs
from tests.painting import load_stock, psnr
from tests.service import Service
from worker.settings import WorkerSettings

SIZE = 256
GUIDANCE_SCALE = 4.0
MAX_RATIO = 1.05
TRIES = 8
# The aim is for jobs from here on; the shortest such job is the hardest, and a little more keeps it one.
MIN_JOB_SECONDS, SHORT_JOB_SECONDS = 0.3, 0.36
STEPS_TRIED, MOST_STEPS = (5, 20), 51
MIN_PSNR = 50.0
COLOURS = ("red", "blue", "green", "yellow", "purple", "orange", "white", "black")
SHAPES = ("circle", "square", "triangle", "star")


@dataclass(frozen=True, kw_only=True)
class Work:
    """A job of this benchmark. The pictures are PNG files of SIZE pixels."""

    picture: bytes
    mask: bytes
    prompt: str
    negative_prompt: str
    seed: int
    num_images: int
    num_inference_steps: int

    def body(self, key: str) -> Mapping[str, Any]:
        return {
            "key": key,
            "prompt": self.prompt,
            "negative_prompt": self.negative_prompt,
            "init_image": inline(self.picture),
            "mask_image": inline(self.mask),
            "width": SIZE,
            "height": SIZE,
            "samples": self.num_images,
            "num_inference_steps": self.num_inference_steps,
            "guidance_scale": GUIDANCE_SCALE,
            "strength": 1.0,
            "scheduler": "DDIMScheduler",
            "seed": self.seed,
            "enhance_prompt": "no",
        }


@dataclass(frozen=True, kw_only=True)
class Through:
    """What the way through the service took: all of it, and from the claim to the stored pictures."""

    pngs: Sequence[bytes]
    seconds: float
    worker_seconds: float


@dataclass(frozen=True, kw_only=True)
class Direct:
    """What the direct way took: all of it, and its pipeline call alone."""

    pngs: Sequence[bytes]
    seconds: float
    pipeline_seconds: float


class DirectPainter:
    """The control: what a program of one's own around diffusers' pipeline does for the same job."""

    def __init__(self) -> None:
        source = load_catalog(StorageSettings(models_file=None)).default.source
        if not isinstance(source, Folder):
            raise TypeError("the built-in model is no folder")
        torch.set_num_threads(WorkerSettings().torch_thread_count)
        self._pipeline = load_stock(source.path)

    def paint(self, work: Work) -> Direct:
        """Decode both pictures, paint, paste what was painted into the picture, encode as Pillow does."""
        start = time.perf_counter()
        picture = Image.open(io.BytesIO(work.picture)).convert("RGB")
        mask = Image.open(io.BytesIO(work.mask)).convert("L")
        generators = [torch.Generator("cpu").manual_seed(work.seed + index) for index in range(work.num_images)]
        before = time.perf_counter()
        painted = self._pipeline(
            prompt=work.prompt,
            negative_prompt=work.negative_prompt,
            image=picture,
            mask_image=mask,
            width=SIZE,
            height=SIZE,
            strength=1.0,
            num_images_per_prompt=work.num_images,
            num_inference_steps=work.num_inference_steps,
            guidance_scale=GUIDANCE_SCALE,
            generator=generators,
        ).images
        after = time.perf_counter()
        pngs = []
        for image in painted:
            buffer = io.BytesIO()
            Image.composite(image, picture, mask).save(buffer, "PNG")
            pngs.append(buffer.getvalue())
        return Direct(pngs=pngs, seconds=time.perf_counter() - start, pipeline_seconds=after - before)


@dataclass(frozen=True, kw_only=True)
class Kind:
    """What the jobs of some pairs have in common."""

    num_images: int
    num_inference_steps: int

    def __str__(self) -> str:
        pictures = "1 picture" if self.num_images == 1 else f"{self.num_images} pictures"
        return f"{pictures} of {SIZE} px, {self.num_inference_steps} steps"


@dataclass(frozen=True, kw_only=True)
class Pair:
    """The same job both ways."""

    through: Through
    direct: Direct


def one_job(service: Service, *, pairs: int) -> Findings:
    direct = DirectPainter()
    kinds = {
        Kind(num_images=1, num_inference_steps=_steps_of_a_short_job(direct)): 2 * pairs,
        Kind(num_images=1, num_inference_steps=50): pairs,
        Kind(num_images=4, num_inference_steps=20): pairs,
    }
    rows, remarks = (
        [],
        [
            "(a) figure: POST with inline pictures, to the answer `success`; the submit waits, the worker is warm. "
            "control: decode, StableDiffusionInpaintPipeline, paste back, Pillow's PNG, in one process. The two take "
            "turns; every pair has prompts and a seed of its own; ratio: the median of the pairs' ratios. The pictures "
            "of both were compared. The first kind's steps are chosen to make a job of little more than "
            f"{milliseconds(MIN_JOB_SECONDS)}.",
        ],
    )
    for kind, count in kinds.items():
        done = _pairs(service, direct, kind, count)
        rows += _rows(kind, done)
        outside = median([pair.through.seconds - pair.through.worker_seconds for pair in done])
        remarks.append(
            f"(a) {kind}: {milliseconds(outside)} lie outside the worker (HTTP, record, ticket, wake-up). "
            f"{_spread(done)}"
        )
    return Findings(rows=rows, remarks=remarks)


def _steps_of_a_short_job(direct: DirectPainter) -> int:
    few, many = (_work(index, Kind(num_images=1, num_inference_steps=steps)) for index, steps in enumerate(STEPS_TRIED))
    direct.paint(few)
    few_seconds, many_seconds = (_computing_seconds(direct, work) for work in (few, many))
    step_seconds = (many_seconds - few_seconds) / (STEPS_TRIED[1] - STEPS_TRIED[0])
    steps = STEPS_TRIED[0] + math.ceil((SHORT_JOB_SECONDS - few_seconds) / step_seconds)
    return min(MOST_STEPS, max(STEPS_TRIED[0], steps))


def _computing_seconds(direct: DirectPainter, work: Work) -> float:
    """What the job takes on a machine that does nothing else, which this one may not be at the moment."""
    tries = []
    for _ in range(TRIES):
        start = time.process_time()
        direct.paint(work)
        tries.append(time.process_time() - start)
    return min(tries) / torch.get_num_threads()


def _pairs(service: Service, direct: DirectPainter, kind: Kind, count: int) -> list[Pair]:
    done = []
    for index in range(count + 1):
        work = _work(index, kind)
        # Who comes first alternates, so that neither always finds the machine as the other left it.
        if index % 2:
            controlled = direct.paint(work)
            through = _through(service, work)
        else:
            through = _through(service, work)
            controlled = direct.paint(work)
        _check(work, through.pngs, controlled.pngs)
        done.append(Pair(through=through, direct=controlled))
    return done[1:]  # the first one warmed both up


def _rows(kind: Kind, pairs: Sequence[Pair]) -> list[Row]:
    through_seconds = [pair.through.seconds for pair in pairs]
    direct_seconds = [pair.direct.seconds for pair in pairs]
    pipeline_seconds = [pair.direct.pipeline_seconds for pair in pairs]
    over_direct = _median_ratio(through_seconds, direct_seconds)
    over_pipeline = _median_ratio(through_seconds, pipeline_seconds)
    counts = median(direct_seconds) >= MIN_JOB_SECONDS
    values = {"service_seconds": median(through_seconds)}
    return [
        Row(
            part="a",
            measured=f"one job through the service: {kind} ({len(pairs)} pairs)",
            figure=milliseconds(median(through_seconds)),
            control=f"{milliseconds(median(direct_seconds))} (diffusers directly)",
            ratio=over_direct,
            aim=f"≤ {MAX_RATIO}" if counts else f"none below {milliseconds(MIN_JOB_SECONDS)}",
            met=over_direct <= MAX_RATIO if counts else None,
            values={**values, "direct_seconds": median(direct_seconds)},
        ),
        Row(
            part="a",
            measured="the same over the pipeline call alone",
            figure=milliseconds(median(through_seconds)),
            control=f"{milliseconds(median(pipeline_seconds))} (no decode, paste, encode)",
            ratio=over_pipeline,
            values={**values, "pipeline_seconds": median(pipeline_seconds)},
        ),
    ]


def _spread(pairs: Sequence[Pair]) -> str:
    """How far the median is to be trusted."""
    ratios = [pair.through.seconds / pair.direct.seconds for pair in pairs]
    fastest = min(pair.through.seconds for pair in pairs) / min(pair.direct.seconds for pair in pairs)
    low, high = quantile(ratios, 0.25), quantile(ratios, 0.75)
    return f"Half of the ratios lie between {low:.2f} and {high:.2f}; that of the fastest of either is {fastest:.2f}."


def _work(index: int, kind: Kind) -> Work:
    # Never the same words twice: the service keeps encoded prompts, the pipeline does not.
    colour, other = COLOURS[index % len(COLOURS)], COLOURS[(index + 3) % len(COLOURS)]
    return Work(
        picture=as_png(photographs(SIZE)[0].pixels),
        mask=as_png(middle_mask(SIZE)),
        prompt=f"a {colour} {SHAPES[index % len(SHAPES)]} on a {other} background, {index}, {kind}",
        negative_prompt=f"gray, {index}, {kind}",
        seed=1000 * kind.num_images + 10 * index,
        num_images=kind.num_images,
        num_inference_steps=kind.num_inference_steps,
    )


def _through(service: Service, work: Work) -> Through:
    body = work.body(service.key)
    start = time.perf_counter()
    answer = submit(service.url, body, expected="success")
    seconds = time.perf_counter() - start
    pngs = [picture_bytes(service.url, link) for link in answer["output"]]
    return Through(pngs=pngs, seconds=seconds, worker_seconds=answer["generationTime"])


def _check(work: Work, pngs: Sequence[bytes], direct_pngs: Sequence[bytes]) -> None:
    """What was not masked is untouched, and well inside the mask both ways painted the same."""
    picture, mask = from_png(work.picture), from_png(work.mask)
    inside = _without_edge(mask)
    for png, direct_png in zip(pngs, direct_pngs, strict=True):
        through, control = from_png(png), from_png(direct_png)
        if not np.array_equal(through[mask == 0], picture[mask == 0]):
            raise RuntimeError("the service changed what was not masked")
        if np.array_equal(through[inside], picture[inside]):
            raise RuntimeError("the service painted nothing")
        if psnr(through[inside], control[inside]) < MIN_PSNR:
            raise RuntimeError("service and pipeline painted different pictures")


def _without_edge(mask: Picture) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """The mask less 8 pixels all around: the service feathers its edge."""
    rows, columns = np.nonzero(mask)
    inside = np.zeros(mask.shape, dtype=bool)
    inside[rows.min() + 8 : rows.max() - 7, columns.min() + 8 : columns.max() - 7] = True
    return inside


def _median_ratio(figures: Sequence[float], controls: Sequence[float]) -> float:
    return median([figure / control for figure, control in zip(figures, controls, strict=True)])
