"""Train the built-in model: `python -m worker.builtin.train OUT`. Interrupt it as you like; it goes on from there.

On two processor cores: OMP_NUM_THREADS=1 torchrun --nproc-per-node 2 -m worker.builtin.train OUT
"""

from __future__ import annotations

import argparse
import dataclasses
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from worker.builtin.train.autoencoder import AutoencoderTraining
from worker.builtin.train.captions import WORDS
from worker.builtin.train.checkpoint import load_checkpoint, save_checkpoint
from worker.builtin.train.export import export_model, make_pipeline
from worker.builtin.train.painting import PainterTraining
from worker.builtin.train.parts import Painter, autoencoder_from, fresh_autoencoder, fresh_painter, painter_from
from worker.builtin.train.processes import Place, find_place
from worker.builtin.train.recipe import USUAL_SIZE, Recipe, Shares
from worker.builtin.train.sitting import Sitting, make_sitting_wishes
from worker.builtin.train.trials import (
    GRID_PROMPTS,
    Obedience,
    make_wishes,
    measure,
    measure_sitting,
    paint,
    write_grid,
)
from worker.builtin.train.words import write_tokenizer
from worker.loading import quieten_libraries

SECONDS_PER_MINUTE = 60
LOSSES_SHOWN = 100
TRIAL_SEED = 20  # the benchmark's wishes have another
MOST_WISHES = 60


def _shares(text: str, kind: Callable[[str], Any]) -> Shares:
    """Of `256:0.7,512:0.3`."""
    pairs = (each.split(":") for each in text.split(","))
    return tuple((kind(choice), float(share)) for choice, share in pairs)


CHANGEABLE: dict[str, Callable[[str], Any]] = {
    "seed": int,
    "batch": int,
    "vae_joint_steps": int,
    "vae_decoder_steps": int,
    "learning_rate": float,
    "sizes": partial(_shares, kind=int),
    "worlds": partial(_shares, kind=str),
    "cool_down_share": float,
}
APART = "The processes' states are of different steps: they were stopped while they saved, or there were fewer of them."
console = Console()


class Interrupted:
    """True once somebody has asked to stop; the step that is going on is finished first."""

    def __init__(self) -> None:
        self._asked = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interrupted:
        self._before = {number: signal.signal(number, self._ask) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, _signal: int, _frame: FrameType | None) -> None:
        self._asked = True

    def __bool__(self) -> bool:
        return self._asked


class Every:
    """True when that many minutes have passed since it was so last."""

    def __init__(self, minutes: float) -> None:
        self._seconds = minutes * SECONDS_PER_MINUTE
        self._last = time.monotonic()

    def is_due(self) -> bool:
        due = time.monotonic() - self._last >= self._seconds
        if due:
            self._last = time.monotonic()
        return due


def main(arguments: Sequence[str] | None = None, recipe: Recipe | None = None) -> None:
    asked = _parse(arguments)
    recipe = _changed(recipe or Recipe(), asked)
    quieten_libraries()
    place = find_place(asked.device)
    asked.out.mkdir(parents=True, exist_ok=True)
    if place.leads and not (asked.out / "tokenizer").is_dir():
        write_tokenizer(asked.out / "tokenizer", WORDS)
    place.wait_for_all()
    with Interrupted() as interrupted:
        autoencoder = _autoencoder(asked, recipe, place, interrupted)
        if autoencoder is not None:
            _train_painter(asked, recipe, place, interrupted, autoencoder)
    place.leave()


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m worker.builtin.train", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, help="folder for checkpoints, sample pictures and, in OUT/model, the result")
    parser.add_argument("--weights", type=Path, metavar="MODEL", help="a new OUT begins with this model")
    parser.add_argument("--samples", type=int, default=3_000_000, help="pictures to learn from, all in all")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--renderers", type=int, default=0, help="processes that draw scenes (a GPU wants 12 or so)")
    parser.add_argument("--save-minutes", type=float, default=3)
    parser.add_argument("--trial-minutes", type=float, default=15, help="between sample pictures")
    parser.add_argument("--trial-size", type=int, default=USUAL_SIZE, help="of sample pictures, in pixels")
    parser.add_argument(
        "--trial-wishes", type=int, default=60, help=f"prompts painted and judged, {MOST_WISHES} at most"
    )
    for name, kind in CHANGEABLE.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, help=f"instead of {getattr(Recipe(), name)}")
    asked = parser.parse_args(arguments)
    if not 0 <= asked.trial_wishes <= MOST_WISHES:
        parser.error(
            f"--trial-wishes: 0 to {MOST_WISHES}; the benchmark of obedience keeps its own prompts apart from those"
        )
    return asked


def _changed(recipe: Recipe, asked: argparse.Namespace) -> Recipe:
    changes = {name: getattr(asked, name) for name in CHANGEABLE if getattr(asked, name) is not None}
    return dataclasses.replace(recipe, **changes)


def _autoencoder(asked: argparse.Namespace, recipe: Recipe, place: Place, interrupted: Interrupted) -> Any:
    """The finished one, trained by now if there was none; None when interrupted.

    Several processes do the same work, and go on with what the leading one has made of it.
    """
    finished, file = asked.out / "vae", asked.out / "autoencoder.pt"
    if (finished / "config.json").is_file():
        return autoencoder_from(finished)
    if asked.weights is not None:
        autoencoder = autoencoder_from(asked.weights / "vae")
        place.wait_for_all()
        if place.leads:
            autoencoder.save_pretrained(finished)  # so that the training goes on without these weights, too
        return autoencoder
    training = AutoencoderTraining(recipe, fresh_autoencoder(recipe), place.device)
    state = load_checkpoint(file, place.device)
    if state is not None:
        training.load(state)
    save_due = Every(asked.save_minutes)
    with _progress("autoencoder", training.total_steps, training.step, place) as show:
        stop = False
        while not training.is_done and not stop:
            loss = training.advance()
            show(training.step, loss)
            (stop,) = place.agreed(bool(interrupted))
            if place.leads and save_due.is_due():
                save_checkpoint(file, training.state())
    if place.leads:
        save_checkpoint(file, training.state())
        if training.is_done:
            training.autoencoder.save_pretrained(finished)
    place.wait_for_all()
    return autoencoder_from(finished).to(place.device) if training.is_done else None


def _train_painter(
    asked: argparse.Namespace, recipe: Recipe, place: Place, interrupted: Interrupted, autoencoder: Any
) -> None:
    training = PainterTraining(
        recipe,
        _first_painter(asked, recipe),
        autoencoder,
        samples=asked.samples,
        device=place.device,
        renderers=asked.renderers,
        rank=place.rank,
        world_size=place.world_size,
    )
    file = asked.out / f"painter-{place.rank}.pt"
    state = load_checkpoint(file, place.device)
    if state is not None:
        training.load(state)
    if not place.all_at(training.step):
        raise SystemExit(f"{APART} Delete {asked.out}/painter-*.pt and begin with --weights {asked.out}/model.")
    if state is not None and place.leads:
        console.print(f"going on after step {training.step}, {training.samples} samples", highlight=False)
    elif place.leads and asked.weights is not None:
        _try_out(asked, training)
    save_due, trial_due = Every(asked.save_minutes), Every(asked.trial_minutes)
    with _progress("painter", training.target_samples, training.samples, place) as show:
        stop = False
        while not training.is_done and not stop:
            loss = training.advance()
            show(training.samples, loss)
            stop, save = place.agreed(bool(interrupted), place.leads and save_due.is_due())
            if save:
                save_checkpoint(file, training.state(), ready=place.wait_for_all)
            if place.leads and trial_due.is_due():
                _try_out(asked, training)
    save_checkpoint(file, training.state(), ready=place.wait_for_all)
    if place.leads and training.is_done:
        _try_out(asked, training)
    place.wait_for_all()


def _first_painter(asked: argparse.Namespace, recipe: Recipe) -> Painter:
    tokenizer = asked.out / "tokenizer"
    return fresh_painter(recipe, tokenizer) if asked.weights is None else painter_from(asked.weights, recipe, tokenizer)


def _try_out(asked: argparse.Namespace, training: PainterTraining) -> None:
    """A grid to look at, figures, and the model itself: the latest in OUT/model, the most obedient in OUT/best."""
    size, wishes = asked.trial_size, make_wishes(asked.trial_wishes, TRIAL_SEED)
    sitting_wishes = make_sitting_wishes(asked.trial_wishes // 2, TRIAL_SEED)
    with training.averaged() as painter:
        pipeline = make_pipeline(painter, training.autoencoder)
        obedience = measure(pipeline, wishes, size) if wishes else Obedience(0, 0, 0)
        sitting = measure_sitting(pipeline, sitting_wishes, size) if sitting_wishes else Sitting(0, 0, 0)
        grids = asked.out / "grids"
        grids.mkdir(exist_ok=True)
        seeds = range(len(GRID_PROMPTS))
        write_grid(
            grids / f"{training.samples:08d}.png", GRID_PROMPTS, lambda prompts: paint(pipeline, prompts, seeds, size)
        )
        export_model(asked.out / "model", painter, training.autoencoder)
        score = (3 * obedience.mean + sitting.on_it) / 4
        trial = f"{len(wishes)} prompts at {size} pixels"
        if score > _best_so_far(asked.out, trial):
            export_model(asked.out / "best", painter, training.autoencoder)
    line = (
        f"{training.samples} samples, {trial}: {obedience};"
        f" {len(sitting_wishes)} of something sitting on a bench: {sitting}"
    )
    console.print(line, highlight=False)
    with (asked.out / "obedience.log").open("a") as log:
        log.write(f"{score:.4f} {line}\n")


def _best_so_far(out: Path, trial: str) -> float:
    """In trials like this one."""
    log = out / "obedience.log"
    lines = log.read_text().splitlines() if log.is_file() else []
    return max((float(line.split()[0]) for line in lines if f" {trial}:" in line), default=-1.0)


@contextmanager
def _progress(name: str, total: int, done: int, place: Place) -> Iterator[Any]:
    """Yields what is to be called with the work done so far and the latest loss."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    losses: list[float] = []
    calls = 0
    with Progress(*columns, console=console, disable=not place.leads) as progress:
        task = progress.add_task(name, total=total, completed=done)

        def show(work: int, loss: float) -> None:
            nonlocal calls
            calls += 1
            losses.append(loss)
            del losses[:-LOSSES_SHOWN]
            mean = sum(losses) / len(losses)
            progress.update(task, completed=work, description=f"{name}, loss {mean:.3f}")
            if place.leads and calls % LOSSES_SHOWN == 0:
                progress.console.print(f"{name}: {work} of {total}, loss {mean:.4f}", highlight=False)

        yield show


if __name__ == "__main__":
    main()
