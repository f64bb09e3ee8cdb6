"""The safety checker: what it finds, what is loaded when, and that no picture goes unchecked."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
import torch
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from structlog.testing import capture_logs

from storage.job import SafetyAction
from tests.tiny_checkers import ALWAYS, NEVER, make_tiny_checker, tiny_processor
from worker import safety as module
from worker.errors import OutOfMemory, SafetyCheckerUnavailable
from worker.hiding import hidden
from worker.loading import LOADING
from worker.safety import MAX_SQUARES, LoadedChecker, Safety, squares

Outcome = TypeVar("Outcome")
WEIGHTS = "model.safetensors"


class Here:
    """In the place of the engine: does work at once, and counts."""

    def __init__(self) -> None:
        self.count = 0

    def aside(self, action: Callable[[], Outcome]) -> Outcome:
        self.count += 1
        with torch.inference_mode():
            return action()


def safety(folder: Path | None, engine: Any = None) -> Safety:
    return Safety(folder, engine or Here(), lambda: torch.device("cpu"))


def a_picture(seed: int, height: int = 64, width: int = 64) -> NDArray[np.uint8]:
    """Coarse enough that the checker, which looks at 32 pixels, sees it."""
    coarse = np.random.default_rng(seed).integers(0, 256, (height // 16, width // 16, 3), np.uint8)
    return coarse.repeat(16, axis=0).repeat(16, axis=1)


@pytest.mark.parametrize("action", list(SafetyAction))
def test_a_picture_in_which_something_is_found_is_hidden_as_the_job_says(tmp_path: Path, action: SafetyAction) -> None:
    picture = a_picture(1)
    shown, found = safety(make_tiny_checker(tmp_path, threshold=ALWAYS)).checked(picture, action)
    assert found
    assert np.array_equal(shown, hidden(picture, action))


def test_a_picture_in_which_nothing_is_found_stays_as_it_is(tmp_path: Path) -> None:
    picture = a_picture(1)
    shown, found = safety(make_tiny_checker(tmp_path, threshold=NEVER)).checked(picture, SafetyAction.BLACK)
    assert not found
    assert np.array_equal(shown, picture)


def test_a_job_that_does_not_ask_needs_no_checker() -> None:
    engine = Here()
    unchecked = safety(None, engine)
    unchecked.prepare(None)
    picture = a_picture(1)
    assert unchecked.checked(picture, None) == (picture, False)
    assert engine.count == 0


def test_it_finds_what_diffusers_own_finds(tmp_path: Path) -> None:
    pictures = [a_picture(seed) for seed in range(24)]
    folder = make_tiny_checker(tmp_path)
    stock = StableDiffusionSafetyChecker.from_pretrained(folder, local_files_only=True)
    pixels = tiny_processor()(images=pictures, return_tensors="pt").pixel_values
    with torch.no_grad():
        seen = torch.nn.functional.normalize(stock.visual_projection(stock.vision_model(pixels)[1]))
        cosines = seen @ torch.nn.functional.normalize(stock.concept_embeds).T
        # A threshold in the middle of what these pictures score.
        stock.concept_embeds_weights.fill_(cosines.max(dim=1).values.median().item())
    stock.save_pretrained(folder)
    _, expected = stock(clip_input=pixels, images=[np.zeros((1, 1, 3))] * len(pictures))
    assert 4 < sum(expected) < 20
    ours = safety(folder)
    assert [ours.checked(picture, SafetyAction.BLUR)[1] for picture in pictures] == expected


# -- what it looks at --------------------------------------------------------------------------------


@pytest.mark.parametrize(("height", "width"), [(64, 64), (64, 65), (100, 250), (250, 100), (1, 7), (32, 2000)])
def test_squares_cover_the_picture(height: int, width: int) -> None:
    places = np.arange(height * width, dtype=np.float64).reshape(height, width)
    parts = list(squares(np.stack([places] * 3, axis=2)))
    assert len(parts) <= MAX_SQUARES
    assert all(part.shape[0] == part.shape[1] for part in parts)
    if max(height, width) <= MAX_SQUARES * min(height, width):
        assert {value for part in parts for value in part[..., 0].ravel()} == set(places.ravel())


def test_something_at_the_edge_of_a_long_picture_is_found(tmp_path: Path) -> None:
    bad = a_picture(7)
    ours = safety(make_tiny_checker(tmp_path, like=bad))
    harmless = [a_picture(8), a_picture(9)]
    for picture, expected in ((harmless, False), ([*harmless, bad], True), ([bad, *harmless], True)):
        for axis in (0, 1):
            assert ours.checked(np.concatenate(picture, axis=axis), SafetyAction.BLACK)[1] is expected


# -- loading -----------------------------------------------------------------------------------------


def test_it_is_loaded_once_for_all_threads_and_said_so(tmp_path: Path) -> None:
    ours = safety(make_tiny_checker(tmp_path))
    with capture_logs() as logs, ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: ours.prepare(SafetyAction.BLUR), range(16)))
    assert [each["event"] for each in logs] == ["safety_checker_loaded"]
    assert logs[0]["weight_bytes"] > 10_000


def test_it_is_not_loaded_beside_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[bool] = []
    load = module.load_checker

    def load_and_look(folder: Path, device: torch.device) -> LoadedChecker:
        held.append(LOADING.locked())
        return load(folder, device)

    monkeypatch.setattr(module, "load_checker", load_and_look)
    safety(make_tiny_checker(tmp_path)).prepare(SafetyAction.BLUR)
    assert held == [True]
    assert not LOADING.locked()


def test_files_of_older_libraries_are_read(tmp_path: Path) -> None:
    """Their vision model has one more level, its processor another class and bare numbers for sizes."""
    picture = a_picture(3)
    folder = make_tiny_checker(tmp_path, like=picture)
    weights = load_file(folder / WEIGHTS)
    older = {name.replace("vision_model.", "vision_model.vision_model.", 1): each for name, each in weights.items()}
    save_file(older, folder / WEIGHTS, metadata={"format": "pt"})
    config = json.loads((folder / "preprocessor_config.json").read_text())
    del config["image_processor_type"]
    config |= {"feature_extractor_type": "CLIPFeatureExtractor", "size": 32, "crop_size": 32}
    (folder / "preprocessor_config.json").write_text(json.dumps(config))
    ours = safety(folder)
    assert ours.checked(picture, SafetyAction.BLUR)[1]
    assert not ours.checked(a_picture(4), SafetyAction.BLUR)[1]


def test_the_processor_may_lie_beside_the_folder_or_nowhere(tmp_path: Path) -> None:
    picture = a_picture(3)
    folder = make_tiny_checker(tmp_path / "safety_checker", like=picture, processor=False)
    assert safety(folder).checked(picture, SafetyAction.BLUR)[1]
    tiny_processor().save_pretrained(tmp_path / "feature_extractor")
    assert safety(folder).checked(picture, SafetyAction.BLUR)[1]
    (tmp_path / "feature_extractor" / "preprocessor_config.json").write_text("no JSON")
    with pytest.raises(SafetyCheckerUnavailable):
        safety(folder).prepare(SafetyAction.BLUR)


def test_half_precision_files_are_read(tmp_path: Path) -> None:
    folder = make_tiny_checker(tmp_path, threshold=ALWAYS)
    halves = {name: each.half() for name, each in load_file(folder / WEIGHTS).items()}
    (folder / WEIGHTS).unlink()
    save_file(halves, folder / "model.fp16.safetensors", metadata={"format": "pt"})
    assert safety(folder).checked(a_picture(1), SafetyAction.BLUR)[1]


def _gone(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()


def _pickle_only(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "pytorch_model.bin")


def _cut_short(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-8])


def _lacks_weights(folder: Path) -> None:
    weights = load_file(folder / WEIGHTS)
    del weights["concept_embeds"]
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})


def _no_numbers(folder: Path) -> None:
    weights = load_file(folder / WEIGHTS)
    weights["visual_projection.weight"][0, 0] = torch.nan
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})


def _another_model(folder: Path) -> None:
    (folder / "config.json").write_text("[]")


SPOILT = [_gone, _pickle_only, _cut_short, _lacks_weights, _no_numbers, _another_model]


@pytest.mark.parametrize("spoil", SPOILT, ids=lambda spoil: spoil.__name__.strip("_"))
def test_a_checker_that_cannot_be_used_is_said_so_and_tried_again(
    tmp_path: Path, spoil: Callable[[Path], None]
) -> None:
    ours = safety(make_tiny_checker(tmp_path, threshold=ALWAYS))
    spoil(tmp_path)
    for _ in range(2):
        with capture_logs() as logs, pytest.raises(SafetyCheckerUnavailable):
            ours.prepare(SafetyAction.BLUR)
        assert logs[0]["event"].startswith("safety_checker_")
    # The operator has mended it; nothing is started anew.
    make_tiny_checker(tmp_path, threshold=ALWAYS)
    assert ours.checked(a_picture(1), SafetyAction.BLACK)[1]


def test_what_the_engine_says_of_a_check_ends_the_job_and_no_picture_comes_back(tmp_path: Path) -> None:
    class Full:
        def aside(self, action: Callable[[], Outcome]) -> Outcome:
            raise OutOfMemory

    with pytest.raises(OutOfMemory):
        safety(make_tiny_checker(tmp_path), Full()).checked(a_picture(1), SafetyAction.BLUR)
