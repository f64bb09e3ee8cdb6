"""Does doodle paint what it is asked for? Held-out prompts through the engine, looked at by the judge.

python -m tests.benchmarks.obedience [--out FOLDER] [--model FOLDER] [--size 256] [--prompts 200] [--only times]

About four minutes on one processor core at the size where doodle works. With --out, grids of what was painted are
written there, to be looked at by eye.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import itertools
import logging
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import numpy as np
import structlog
from numpy.typing import NDArray

from storage.model_catalog import Folder, ModelEntry, load_catalog
from storage.settings import StorageSettings
from tests.benchmarks.figures import Row, markdown
from tests.benchmarks.machine import load, machine_facts
from tests.painting import load_stock, make_painting, paint_stock, running_engine
from worker.builtin.train.__main__ import TRIAL_SEED
from worker.builtin.train.drawing import Place
from worker.builtin.train.judging import colour_share
from worker.builtin.train.palette import COLOURS
from worker.builtin.train.shapes import SHAPES, draw_shape
from worker.builtin.train.sitting import SITTERS, SittingWish, judge_sitting, make_sitting_wishes
from worker.builtin.train.trials import GRID_PROMPTS, Wish, judge, make_wishes, masked_part, trial_canvas, write_grid
from worker.engine import Engine, Painting
from worker.framing import Frame, frame_for

HELD_OUT_SEED = 77
MOST_TRIAL_WISHES = 200
MOST_SITTING_WISHES, MOST_TRIAL_SITTING_WISHES = 72, 30
COLOUR_AIM, BACKGROUND_AIM, SHAPE_AIM = 0.95, 0.95, 0.80
NEGATIVE_COLOURS = ("red", "blue", "green", "yellow")
STRENGTHS = (0.2, 0.4, 0.7, 1.0)
GUIDANCE_SCALES = (1.0, 4.0, 8.0)
TIMED_SIZES = {256: 0.6, 512: 2.0}
"""Pixels, and seconds at most on two quiet cores."""
TRIES = 4
_AT_ONCE = 8

Picture = NDArray[np.uint8]


@dataclasses.dataclass(frozen=True)
class Prompt:
    text: str
    seed: int
    negative: str = ""
    guidance_scale: float | None = None
    strength: float = 1.0
    picture: Picture | None = None
    """Instead of the trial's canvas."""


class Studio:
    """The engine, with the model and the size of the results. What it paints goes the way of a job's pictures."""

    def __init__(self, engine: Engine, entry: ModelEntry, size: int) -> None:
        self.engine, self.entry, self.size = engine, entry, size
        self.canvas, self.mask = trial_canvas(size)
        self.part = masked_part(size)
        self._numbers = itertools.count()

    def paint(self, prompts: Iterable[Prompt]) -> list[Picture]:
        with ThreadPoolExecutor(_AT_ONCE) as threads:
            return list(threads.map(self._paint_one, prompts))

    def parts(self, prompts: Iterable[Prompt]) -> list[Picture]:
        """Without what is outside the mask."""
        return [picture[self.part] for picture in self.paint(prompts)]

    def painting_of(self, prompt: Prompt) -> tuple[Frame, Painting]:
        canvas = self._canvas_of(prompt)
        frame = frame_for(self.mask, self.entry)
        painting = make_painting(
            self.entry.id,
            job_id=f"{next(self._numbers)}",
            picture=frame.picture_for_model(canvas),
            mask=frame.mask_for_model(self.mask),
            prompt=prompt.text,
            negative_prompt=prompt.negative,
            seeds=(prompt.seed,),
            num_inference_steps=self.entry.num_inference_steps,
            guidance_scale=prompt.guidance_scale or self.entry.guidance_scale,
            strength=prompt.strength,
            scheduler=self.entry.scheduler,
        )
        return frame, painting

    def _paint_one(self, prompt: Prompt) -> Picture:
        frame, painting = self.painting_of(prompt)
        [painted] = self.engine.paint(painting)
        return frame.paste(painted, self._canvas_of(prompt), self.mask)

    def _canvas_of(self, prompt: Prompt) -> Picture:
        return self.canvas if prompt.picture is None else prompt.picture


def held_out_wishes(count: int) -> list[Wish]:
    """None of those by which the best weights of a training are chosen."""
    chosen_by = {wish.prompt for wish in make_wishes(MOST_TRIAL_WISHES, TRIAL_SEED)}
    free = [
        wish for wish in make_wishes(2 * (count + MOST_TRIAL_WISHES), HELD_OUT_SEED) if wish.prompt not in chosen_by
    ]
    by_shape: dict[str, list[Wish]] = {}
    for wish in free:
        by_shape.setdefault(wish.shape, []).append(wish)
    even = [wish for group in zip(*by_shape.values(), strict=False) for wish in group]
    return even[:count]


def held_out_sitting_wishes(count: int) -> list[SittingWish]:
    chosen_by = {wish.prompt for wish in make_sitting_wishes(MOST_TRIAL_SITTING_WISHES, TRIAL_SEED)}
    free = [wish for wish in make_sitting_wishes(MOST_SITTING_WISHES, HELD_OUT_SEED) if wish.prompt not in chosen_by]
    by_sitter = [[wish for wish in free if wish.sitter == sitter] for sitter in SITTERS]
    return [wish for group in zip(*by_sitter, strict=False) for wish in group][:count]


def obedience(studio: Studio, count: int) -> Iterator[Row]:
    wishes = held_out_wishes(count)
    parts = studio.parts(Prompt(wish.prompt, wish.seed) for wish in wishes)
    seen = judge(wishes, parts)
    for what, share, aim in (
        ("colour of the figure", seen.colour, COLOUR_AIM),
        ("colour of the background", seen.background, BACKGROUND_AIM),
        ("shape", seen.shape, SHAPE_AIM),
    ):
        yield Row(
            part="obeys",
            measured=f"{what}, {len(wishes)} prompts at {studio.size} pixels",
            figure=f"{share:.3f}",
            aim=f">= {aim:.2f}",
            met=share >= aim,
            values={"share": share},
        )
    by_shape = {
        shape: judge(*zip(*(pair for pair in zip(wishes, parts, strict=True) if pair[0].shape == shape), strict=True))
        for shape in SHAPES
        if any(wish.shape == shape for wish in wishes)
    }
    yield Row(
        part="obeys",
        measured="shape by shape",
        figure=", ".join(f"{shape} {each.shape:.2f}" for shape, each in by_shape.items()),
        values={shape: each.shape for shape, each in by_shape.items()},
    )


def sitting(studio: Studio, count: int) -> Iterator[Row]:
    wishes = held_out_sitting_wishes(count)
    parts = studio.parts(Prompt(wish.prompt, wish.seed) for wish in wishes)
    for sitter in SITTERS:
        pairs = [pair for pair in zip(wishes, parts, strict=True) if pair[0].sitter == sitter]
        seen = judge_sitting(*zip(*pairs, strict=True))
        yield Row(
            part="sits",
            measured=f"a {sitter} sitting on a bench, {len(pairs)} prompts",
            figure=f"{seen.on_it:.3f} (bench {seen.bench:.2f}, {sitter} {seen.sitter:.2f})",
            aim=f">= {SHAPE_AIM:.2f}",
            met=seen.on_it >= SHAPE_AIM,
            values={"bench": seen.bench, "sitter": seen.sitter, "on it": seen.on_it},
        )


def negatives(studio: Studio, seeds: Sequence[int]) -> Iterator[Row]:
    text = "a circle on a white background"
    free = studio.parts(Prompt(text, seed) for seed in seeds)
    for colour in NEGATIVE_COLOURS:
        kept_away = studio.parts(Prompt(text, seed, negative=colour) for seed in seeds)
        without, within = (
            float(np.mean([colour_share(part, colour) for part in parts])) for parts in (free, kept_away)
        )
        yield Row(
            part="negative",
            measured=f"{colour} in {text!r}, {len(seeds)} seeds",
            figure=f"{100 * within:.2f} %",
            control=f"{100 * without:.2f} %",
            aim="less",
            met=within < without if without else None,
            values={"with": within, "without": without},
        )


def strengths(studio: Studio) -> Row:
    """A star is there already; how much of it is left?"""
    canvas = studio.canvas.astype(np.float32)
    draw_shape(Place(canvas, studio.size / 2, studio.size / 2, studio.size * 0.28), "star", COLOURS["yellow"])
    picture = canvas.astype(np.uint8)
    prompts = [
        Prompt("a red circle on a blue background", 1, strength=strength, picture=picture) for strength in STRENGTHS
    ]
    before = picture[studio.part].astype(int)
    changes = [float(np.abs(part - before).mean()) for part in studio.parts(prompts)]
    return Row(
        part="strength",
        measured=f"mean change at {', '.join(map(str, STRENGTHS))}",
        figure=", ".join(f"{change:.0f}" for change in changes),
        aim="rises to 0.7",
        met=changes[0] < changes[1] < changes[2],
        values=dict(zip(map(str, STRENGTHS), changes, strict=True)),
    )


def guidance(studio: Studio, count: int) -> Row:
    wishes = held_out_wishes(count)
    means = [
        judge(wishes, studio.parts(Prompt(wish.prompt, wish.seed, guidance_scale=scale) for wish in wishes)).mean
        for scale in GUIDANCE_SCALES
    ]
    return Row(
        part="guidance",
        measured=f"mean of the three figures at {', '.join(map(str, GUIDANCE_SCALES))}, {len(wishes)} prompts",
        figure=", ".join(f"{mean:.2f}" for mean in means),
        aim="4 above 1",
        met=means[1] > means[0],
        values=dict(zip(map(str, GUIDANCE_SCALES), means, strict=True)),
    )


def times(entry: ModelEntry, engine: Engine) -> Iterator[Row]:
    """Beside diffusers' own pipeline with the same weights and threads."""
    assert isinstance(entry.source, Folder)
    stock = load_stock(entry.source.path)
    for size, seconds_at_most in TIMED_SIZES.items():
        studio = Studio(engine, entry, size)
        frame, painting = studio.painting_of(Prompt("a red circle on a blue background", 0))
        run_stock = functools.partial(paint_stock, stock, stock.scheduler.config, painting)
        took, stock_took = [], []
        for _ in range(TRIES):
            took.append(_seconds(functools.partial(engine.paint, painting)))
            # In the engine's thread, which alone has so many threads for arithmetic.
            stock_took.append(_seconds(functools.partial(engine.aside, run_stock)))
        yield Row(
            part="time",
            measured=f"one picture of {size} x {size}, worked at {frame.worked_size[0]} x {frame.worked_size[1]}, "
            f"{painting.num_evaluations} UNet evaluations, the best of {TRIES}",
            figure=f"{min(took):.2f} s",
            control=f"{min(stock_took):.2f} s (diffusers' own pipeline)",
            ratio=min(took) / min(stock_took),
            aim=f"<= {seconds_at_most} s on 2 quiet cores",
            met=min(took) <= seconds_at_most,
            values={"seconds": min(took), "stock_seconds": min(stock_took)},
        )


def _seconds(action: Callable[[], object]) -> float:
    start = time.monotonic()
    action()
    return time.monotonic() - start


def write_grids(studio: Studio, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)

    def paint(prompts: Sequence[str]) -> list[Picture]:
        return studio.paint(Prompt(prompt, seed) for seed, prompt in enumerate(prompts))

    write_grid(folder / f"prompts-{studio.size}.png", GRID_PROMPTS, paint)
    write_grid(folder / f"held-out-{studio.size}.png", [wish.prompt for wish in held_out_wishes(20)], paint)
    benches = held_out_sitting_wishes(12)
    write_grid(folder / f"sitting-{studio.size}.png", [wish.prompt for wish in benches], paint)


def main() -> int:
    asked = _parse()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    entry = load_catalog(StorageSettings(models_file=None)).default
    if asked.model is not None:
        entry = dataclasses.replace(entry, source=Folder(asked.model))
    if asked.work_at is not None:
        entry = dataclasses.replace(entry, max_size=asked.work_at)
    for name, fact in (dict(machine_facts()) | {"torch threads": asked.threads}).items():
        print(f"{name}: {fact}  ")
    with running_engine(entry, max_batch=_AT_ONCE, torch_threads=asked.threads) as engine:
        studio = Studio(engine, entry, asked.size)
        rows: list[Row] = []
        if asked.only != "times":
            rows += [*obedience(studio, asked.prompts), *sitting(studio, max(8, asked.prompts // 5))]
        if asked.only is None:
            few = max(12, asked.prompts // 10)
            rows += [*negatives(studio, range(few)), strengths(studio), guidance(studio, asked.guidance_prompts)]
        if asked.only != "obedience":
            rows += times(entry, engine)
        if asked.out is not None:
            write_grids(studio, asked.out)
    print(f"load after: {load()} (with the benchmark's own)\n")
    print(markdown(rows))
    return 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.obedience")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="write grids there")
    parser.add_argument("--model", type=Path, metavar="FOLDER", help="other weights than the ones that ship")
    parser.add_argument("--size", type=int, default=256, help="pixels along the sides of the results")
    parser.add_argument("--work-at", type=int, metavar="PIXELS", help="the model's largest size, instead of doodle's")
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--guidance-prompts", type=int, default=80)
    parser.add_argument("--threads", type=int, default=1, help="for the arithmetic")
    parser.add_argument("--only", choices=("obedience", "times"))
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
