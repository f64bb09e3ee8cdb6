"""Weighted and long prompts, skipped layers and textual inversions against diffusers' own inpainting pipeline."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from compel.embeddings_provider import EmbeddingsProvider, ReturnedEmbeddingsType, SplitLongTextMode
from numpy.typing import NDArray
from safetensors.torch import save_file

from storage.addons import Embedding
from tests.painting import (
    LIBRARY_WARNINGS,
    load_stock,
    make_painting,
    paint_stock,
    paint_together,
    psnr,
    running_engine,
)
from tests.tiny_models import TEXT_WIDTH, make_tiny_model, tiny_entry
from worker.engine import Engine
from worker.errors import AddonUnavailable, PromptTooLong

pytestmark = LIBRARY_WARNINGS

FAMILIES = ("sd", "sdxl")
BATCHED_PSNR = 50
LONG = "the cat on a white background " * 30


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    base = tmp_path_factory.getbasetemp() / "tiny-models"
    return {family: make_tiny_model(base, family=family) for family in FAMILIES}


@pytest.fixture(scope="module")
def engine(folders: dict[str, Path]) -> Iterator[Engine]:
    with running_engine(*(tiny_entry(name, folder, family=name) for name, folder in folders.items())) as engine:
        yield engine


@pytest.fixture(scope="module")
def stock(folders: dict[str, Path]) -> dict[str, tuple[Any, Any]]:
    pipelines = {name: load_stock(folder) for name, folder in folders.items()}
    # With transformers from 5.6 on, clip_skip of the stock pipeline looks for this name in vain.
    text_encoder = pipelines["sd"].text_encoder
    text_encoder.__dict__["text_model"] = text_encoder
    return {name: (pipeline, pipeline.scheduler.config) for name, pipeline in pipelines.items()}


def assert_equal(painted: NDArray[np.uint8], expected: NDArray[np.uint8]) -> None:
    assert expected.std() > 10, "a flat picture would prove nothing"
    assert np.abs(painted.astype(int) - expected).max() <= 1


def by_compel(pipeline: Any, fragments: list[str], weights: list[float]) -> dict[str, torch.Tensor]:
    """The prompt's encoding, with as many windows behind it as LONG has."""
    towers = [(pipeline.tokenizer, pipeline.text_encoder, ReturnedEmbeddingsType.LAST_HIDDEN_STATES_NORMALIZED)]
    if hasattr(pipeline, "text_encoder_2"):
        kind = ReturnedEmbeddingsType.PENULTIMATE_HIDDEN_STATES_NON_NORMALIZED
        towers = [
            (pipeline.tokenizer, pipeline.text_encoder, kind),
            (pipeline.tokenizer_2, pipeline.text_encoder_2, kind),
        ]
    hidden = []
    for tokenizer, encoder, kind in towers:
        provider = EmbeddingsProvider(
            tokenizer,
            encoder,
            truncate=False,
            returned_embeddings_type=kind,
            split_long_text_mode=SplitLongTextMode.BRUTAL,
        )
        encoded = provider.get_embeddings_for_weighted_prompt_fragments([fragments], [weights])
        missing = 3 - encoded.shape[1] // 77
        hidden.append(torch.cat([encoded, *[provider.empty_z] * missing], dim=1))
    if len(towers) == 1:
        return {"prompt_embeds": hidden[0]}
    pooled = EmbeddingsProvider(
        pipeline.tokenizer_2, pipeline.text_encoder_2, returned_embeddings_type=ReturnedEmbeddingsType.POOLED
    ).get_pooled_embeddings(["".join(fragments)])
    return {"prompt_embeds": torch.cat(hidden, dim=-1), "pooled_prompt_embeds": pooled}


@pytest.mark.parametrize("family", FAMILIES)
@torch.inference_mode()
def test_weighted_and_long_prompts_give_what_stock_gives_with_compels_embeddings(
    engine: Engine, stock: dict[str, tuple[Any, Any]], family: str
) -> None:
    pipeline, config = stock[family]
    painting = make_painting(family, prompt="a ((red cat on white:4)) (dog)", negative_prompt=LONG, guidance_scale=15)
    given = by_compel(pipeline, ["a ", "red cat on white", " ", "dog"], [1.0, 1.1 * 4, 1.0, 1.1])
    given |= {f"negative_{name}": encoded for name, encoded in by_compel(pipeline, [LONG], [1.0]).items()}
    expected = paint_stock(pipeline, config, painting, prompt=None, negative_prompt=None, **given)
    assert_equal(engine.paint(painting)[0], expected)
    for changed in ({"prompt": "a red cat on white dog"}, {"negative_prompt": LONG[: len(LONG) // 2]}):
        other = engine.paint(dataclasses.replace(painting, **changed))[0]
        assert np.abs(other.astype(int) - expected).max() > 4


@pytest.mark.parametrize(("family", "clip_skip"), [("sd", 1), ("sd", 2), ("sdxl", 1)])
def test_layers_left_out_give_the_stock_pipelines_picture(
    engine: Engine, stock: dict[str, tuple[Any, Any]], family: str, clip_skip: int
) -> None:
    painting = make_painting(family, clip_skip=clip_skip)
    expected = paint_stock(*stock[family], painting, clip_skip=clip_skip)
    assert_equal(engine.paint(painting)[0], expected)
    assert painting.notes == {}
    assert psnr(engine.paint(make_painting(family))[0], expected) < BATCHED_PSNR / 2


@pytest.mark.parametrize(("family", "layers"), [("sd", 2), ("sdxl", 1)])
def test_no_more_layers_are_left_out_than_there_are_and_the_job_is_told(
    engine: Engine, family: str, layers: int
) -> None:
    painting = make_painting(family, clip_skip=8)
    assert np.array_equal(engine.paint(painting)[0], engine.paint(make_painting(family, clip_skip=layers))[0])
    assert painting.notes == {"clip_skip": layers}


@pytest.mark.parametrize("field", ["prompt", "negative_prompt"])
def test_a_prompt_beyond_all_windows_fails_alone_and_names_its_field(engine: Engine, field: str) -> None:
    neighbour = make_painting("sd", job_id="neighbour")
    alone = engine.paint(neighbour)[0]
    with pytest.raises(PromptTooLong) as failed:
        engine.paint(make_painting("sd", **{field: "a " * 1201}))
    assert failed.value.field == field
    assert np.array_equal(engine.paint(neighbour)[0], alone)


# -- textual inversions ---------------------------------------------------------------------------


def vectors(seed: int, count: int = 3) -> torch.Tensor:
    return torch.randn(count, TEXT_WIDTH, generator=torch.Generator().manual_seed(seed))


def embedding(path: Path, tensors: dict[str, torch.Tensor], token: str = "<thing>") -> Embedding:  # a word
    save_file(tensors, path)
    return Embedding(path.stem, (), path.stem, "sd", path, token)


@pytest.mark.parametrize("layout", ["diffusers", "a1111"])
def test_a_textual_inversion_gives_the_stock_pipelines_picture(
    engine: Engine, folders: dict[str, Path], tmp_path: Path, layout: str
) -> None:
    key = "<thing>" if layout == "diffusers" else "emb_params"
    thing = embedding(tmp_path / "thing.safetensors", {key: vectors(1)})
    pipeline = load_stock(folders["sd"])
    pipeline.load_textual_inversion(str(thing.path), token="<thing>")  # a word
    painting = make_painting("sd", prompt="a <thing> on the dog", negative_prompt="<thing>", embeddings=(thing,))
    before = engine.paint(make_painting("sd"))[0]
    expected = paint_stock(pipeline, pipeline.scheduler.config, painting)
    painted = engine.paint(painting)[0]
    assert_equal(painted, expected)
    assert psnr(engine.paint(make_painting("sd", prompt="a <thing> on the dog"))[0], painted) < BATCHED_PSNR / 2
    assert np.array_equal(engine.paint(make_painting("sd"))[0], before)


def test_a_textual_inversion_of_xl_gives_the_stock_pipelines_picture(
    engine: Engine, folders: dict[str, Path], tmp_path: Path
) -> None:
    tensors = {"clip_l": vectors(2), "clip_g": vectors(3)}
    thing = embedding(tmp_path / "thing.safetensors", tensors)
    pipeline = load_stock(folders["sdxl"])
    # The tiny model's two are one and the same.
    pipeline.tokenizer_2 = load_stock(folders["sdxl"]).tokenizer_2
    for key, tower in (("clip_l", ""), ("clip_g", "_2")):
        pipeline.load_textual_inversion(
            {"<thing>": tensors[key]},
            token="<thing>",  # a word
            text_encoder=getattr(pipeline, f"text_encoder{tower}"),
            tokenizer=getattr(pipeline, f"tokenizer{tower}"),
        )
    painting = make_painting("sdxl", prompt="a <thing> on the dog", embeddings=(thing,))
    assert_equal(engine.paint(painting)[0], paint_stock(pipeline, pipeline.scheduler.config, painting))


def test_an_inversion_that_no_word_names_changes_nothing(engine: Engine, tmp_path: Path) -> None:
    thing = embedding(tmp_path / "thing.safetensors", {"x": vectors(1)}, token="circle")  # a word
    for prompt, changes in (("a circles", False), ("a CIRCLE", True), ("a (circle:1.2), cat", True)):
        without, with_it = (
            engine.paint(make_painting("sd", prompt=prompt, embeddings=given))[0] for given in ((), (thing,))
        )
        assert np.array_equal(without, with_it) is not changes


def test_an_inversion_stays_whole_at_the_end_of_a_window(engine: Engine, tmp_path: Path) -> None:
    thing = embedding(tmp_path / "thing.safetensors", {"x": vectors(1, count=40)})
    early, late = (
        engine.paint(make_painting("sd", prompt=f"{'cat ' * words}<thing>", embeddings=(thing,)))[0]
        for words in (35, 36)
    )
    assert not np.array_equal(early, late)


BAD: dict[str, dict[str, torch.Tensor] | bytes] = {
    "of-another-width": {"x": torch.zeros(1, TEXT_WIDTH + 1)},
    "of-xl": {"clip_l": vectors(1), "clip_g": vectors(1)},
    "of-two-tensors": {"a": vectors(1), "b": vectors(1)},
    "of-integers": {"x": torch.zeros(1, TEXT_WIDTH, dtype=torch.int64)},
    "of-too-many": {"x": torch.zeros(76, TEXT_WIDTH)},
    "of-none": {"x": torch.zeros(0, TEXT_WIDTH)},
    "of-no-numbers": {"x": torch.full((1, TEXT_WIDTH), torch.nan)},
    "of-a-block": {"x": torch.zeros(1, 1, TEXT_WIDTH)},
    "cut-short": b"",
    "a-pickle": b"",
    "missing": b"",
}


@pytest.mark.parametrize("fault", BAD)
def test_a_bad_inversion_fails_its_job_alone(engine: Engine, tmp_path: Path, fault: str) -> None:
    content = BAD[fault]
    thing = embedding(tmp_path / f"{fault}.safetensors", content if isinstance(content, dict) else {"x": vectors(1)})
    if fault == "cut-short":
        thing.path.write_bytes(thing.path.read_bytes()[:-9])
    if fault == "missing":
        thing.path.unlink()
    if fault == "a-pickle":
        path = tmp_path / "thing.pt"
        torch.save({"x": vectors(1)}, path)
        thing = Embedding("thing", (), "thing", "sd", path, "<thing>")
    neighbour = make_painting("sd", job_id="neighbour", num_inference_steps=8)
    alone = engine.paint(neighbour)[0]
    with pytest.raises(AddonUnavailable) as failed:
        paint_together(engine, [make_painting("sd", prompt="<thing>", embeddings=(thing,))])
    assert failed.value.field == "embeddings_model"
    assert str(tmp_path) not in failed.value.message
    assert np.array_equal(engine.paint(neighbour)[0], alone)
