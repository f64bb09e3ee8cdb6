"""The built-in model, through the engine: it obeys colour, negative prompt, strength and seed."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from storage.model_catalog import Folder, load_catalog
from storage.settings import StorageSettings
from tests.painting import LIBRARY_WARNINGS, load_on_cpu, load_stock, make_painting, paint_stock, running_engine
from worker.engine import Engine, Painting
from worker.framing import frame_for

pytestmark = LIBRARY_WARNINGS

SIZE = 256
HOLE = slice(64, 192)
MAX_BYTES = 15_000_000
# Of all weights together, in the order of their paths. Whoever ships others changes this and the model's card.
WEIGHTS_SHA256 = "0594e2d6050acc55b2a90544f24e4e82f318dc3c6e025fc7d1e221b351d1abf0"
DOODLE = load_catalog(StorageSettings(models_file=None)).default


def test_it_is_called_a_demo_model_where_people_choose_and_read() -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    card = (DOODLE.source.path / "README.md").read_text()
    for said in (DOODLE.description, readme, card):
        assert "demo model" in said


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with running_engine(DOODLE, load=load_on_cpu) as engine:
        yield engine


def ask(prompt: str, **changes: Any) -> Painting:
    """A hole in the middle of a gray, noisy picture."""
    noise = np.random.default_rng(5).integers(100, 156, (SIZE, SIZE, 3), dtype=np.uint8)
    mask = np.zeros((SIZE, SIZE), dtype=np.uint8)
    mask[HOLE, HOLE] = 255
    painting = make_painting(
        DOODLE.id,
        picture=noise,
        mask=mask,
        prompt=prompt,
        negative_prompt=DOODLE.negative_prompt,
        num_inference_steps=DOODLE.num_inference_steps,
        guidance_scale=DOODLE.guidance_scale,
        scheduler=DOODLE.scheduler,
        seeds=(1, 2, 3),
    )
    return dataclasses.replace(painting, **changes)


def hole_of(picture: NDArray[np.uint8]) -> NDArray[np.int64]:
    return picture[HOLE, HOLE].astype(np.int64)


def share(picture: NDArray[np.uint8], colour: str) -> float:
    """How much of the hole is plainly red, green or blue, or nearly white."""
    hole = hole_of(picture)
    if colour == "white":
        return float((hole.min(axis=-1) > 200).mean())
    channel = ("red", "green", "blue").index(colour)
    others = np.delete(hole, channel, axis=-1).max(axis=-1)
    return float((hole[..., channel] > others + 60).mean())


def test_the_catalogues_doodle_is_the_model_that_ships() -> None:
    assert DOODLE.id == "doodle"
    assert isinstance(DOODLE.source, Folder)
    files = [path for path in DOODLE.source.path.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < MAX_BYTES
    assert {path.suffix for path in files} == {".json", ".md", ".safetensors", ".txt"}


def test_the_weights_are_the_ones_that_were_measured() -> None:
    assert isinstance(DOODLE.source, Folder)
    weights = sorted(DOODLE.source.path.rglob("*.safetensors"))
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in weights)).hexdigest()
    assert digest == WEIGHTS_SHA256, "new weights? Then measure them anew and say so in their card"


def test_its_list_of_words_is_what_its_tokenizer_knows() -> None:
    assert isinstance(DOODLE.source, Folder)
    words = json.loads((DOODLE.source.path / "words.json").read_text())
    tokenizer = load_on_cpu(DOODLE).prompts.towers[0].tokenizer
    assert len(words) == 104
    assert all(len(tokenizer(word).input_ids) == 3 for word in words)


def test_all_files_of_its_tokenizer_say_the_same() -> None:
    assert isinstance(DOODLE.source, Folder)
    folder = DOODLE.source.path / "tokenizer"
    fast = json.loads((folder / "tokenizer.json").read_text())
    assert json.loads((folder / "vocab.json").read_text()) == fast["model"]["vocab"]
    merges = [" ".join(pair) for pair in fast["model"]["merges"]]
    assert (folder / "merges.txt").read_text().splitlines()[1:] == merges


def test_the_colour_lands_where_the_mask_is(engine: Engine) -> None:
    left = np.zeros((SIZE, SIZE), np.uint8)
    left[:, : SIZE // 2] = 255
    [picture] = engine.paint(ask("red background", mask=left, seeds=(1,)))
    red = picture[..., 0].astype(int) > picture[..., 1:].max(axis=-1).astype(int) + 60
    assert red[:, : SIZE // 2].mean() > 0.9
    assert red[:, SIZE // 2 :].mean() < 0.1


@pytest.mark.parametrize("size", [(64, 64), (72, 200), (248, 136), (264, 328), (504, 256), (512, 512)])
def test_every_size_in_steps_of_8_is_painted(engine: Engine, size: tuple[int, int]) -> None:
    picture = np.random.default_rng(5).integers(100, 156, (*size, 3), dtype=np.uint8)
    mask = np.zeros(size, np.uint8)
    mask[size[0] // 4 : -size[0] // 4, size[1] // 4 : -size[1] // 4] = 255
    frame = frame_for(mask, DOODLE)
    asked = ask("red background", picture=frame.picture_for_model(picture), mask=frame.mask_for_model(mask), seeds=(1,))
    [painted] = engine.paint(asked)
    result = frame.paste(painted, picture, mask).astype(int)
    red = result[..., 0] > result[..., 1:].max(axis=-1) + 60
    assert red[mask > 0].mean() > 0.85
    assert np.array_equal(result[mask == 0], picture[mask == 0])


def test_without_a_prompt_the_surroundings_go_on(engine: Engine) -> None:
    sky = np.full((SIZE, SIZE, 3), (120, 180, 240), np.uint8)
    marked = sky.copy()
    marked[96:160, 96:160] = (215, 30, 35)
    [picture] = engine.paint(ask(DOODLE.empty_prompt, picture=marked, seeds=(1,)))
    assert np.abs(hole_of(picture) - hole_of(sky)).mean() < 15


@pytest.mark.parametrize("colour", ["red", "green", "blue"])
def test_a_circle_has_the_colour_of_the_prompt_on_the_background_of_the_prompt(engine: Engine, colour: str) -> None:
    for picture in engine.paint(ask(f"a {colour} circle on a white background")):
        shares = {name: share(picture, name) for name in ("red", "green", "blue", "white")}
        assert shares[colour] > 0.1
        assert shares["white"] > 0.2
        assert max(value for name, value in shares.items() if name not in (colour, "white")) < 0.02


def test_a_negative_prompt_keeps_a_colour_away(engine: Engine) -> None:
    prompt = "a circle on a white background"
    seeds = tuple(range(4))
    free = np.mean([share(picture, "red") for picture in engine.paint(ask(prompt, seeds=seeds))])
    kept = np.mean([share(p, "red") for p in engine.paint(ask(prompt, seeds=seeds, negative_prompt="red"))])
    assert free > 0.02
    assert kept < free / 5


def test_the_same_seed_paints_the_same_picture_and_another_seed_another(engine: Engine) -> None:
    first, second, third = engine.paint(ask("a red circle on a white background"))
    again = engine.paint(ask("a red circle on a white background"))
    assert np.array_equal([first, second, third], again)
    assert np.abs(hole_of(first) - hole_of(second)).mean() > 5
    assert np.abs(hole_of(second) - hole_of(third)).mean() > 5


def test_more_strength_changes_more(engine: Engine) -> None:
    changes = []
    for strength in (0.1, 0.3, 0.6, 1.0):
        asked = ask("a blue square on a yellow background", strength=strength, seeds=(1,))
        changes.append(np.abs(hole_of(engine.paint(asked)[0]) - hole_of(asked.picture)).mean())
    assert changes[0] < changes[1] < changes[2]
    assert changes[3] > changes[1]


def test_doodle_in_the_engine_equals_doodle_in_the_stock_pipeline(engine: Engine) -> None:
    assert isinstance(DOODLE.source, Folder)
    stock = load_stock(DOODLE.source.path)
    asked = ask("a green square on a black background", seeds=(11,), num_inference_steps=6)
    expected = paint_stock(stock, stock.scheduler.config, asked)
    assert np.abs(engine.paint(asked)[0].astype(int) - expected).max() <= 1
