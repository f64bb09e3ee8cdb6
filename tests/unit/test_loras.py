"""LoRAs in the engine: against diffusers' own, beside jobs with others and none, and after hundreds of switches."""

from __future__ import annotations

import gc
import hashlib
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from storage.job import LoraUse
from storage.model_catalog import ModelEntry
from tests.loras import addons_of, write_lora
from tests.painting import (
    LIBRARY_WARNINGS,
    load_on_cpu,
    load_stock,
    make_painting,
    paint_stock,
    paint_together,
    psnr,
    running_engine,
)
from tests.studio import until
from tests.tiny_models import make_tiny_model, tiny_entry
from worker.adapters import Adapters
from worker.loading import LoadedModel
from worker.preparing import begin_samples
from worker.sample import predict_noise

pytestmark = [
    LIBRARY_WARNINGS,
    # PEFT's word on two LoRAs in one stock pipeline, which is what is meant.
    pytest.mark.filterwarnings("ignore:Already found a `peft_config` attribute:UserWarning"),
]

BATCHED_PSNR = 50
SWITCHES = 200

Files = dict[str, Path]
EVERYTHING = {"texts": True, "convs": True}
# Each: the model, and of each LoRA its file and its strength.
ASKED: list[tuple[str, list[tuple[dict[str, Any], float]]]] = [
    ("sd9", [({"file_format": "diffusers", **EVERYTHING}, 0.8)]),
    ("sd9", [({"file_format": "diffusers", "alpha": 2, "notes_alpha": True, **EVERYTHING}, 1.0)]),
    ("sd9", [({"file_format": "diffusers", "unet": False, "texts": True}, 1.0)]),
    ("sd9", [({"file_format": "old_diffusers"}, 1.2)]),
    ("sd9", [({"file_format": "kohya"}, 0.7), ({"file_format": "diffusers", "rank": 2, **EVERYTHING}, -0.5)]),
    ("sd9", [({"dora": True, "convs": True}, 0.7), ({"file_format": "diffusers"}, 0.5)]),
    ("sd4", [({"file_format": "kohya", "alpha": 2, **EVERYTHING}, 0.9)]),
    ("sd4", [({"file_format": "diffusers"}, 0.4), ({"file_format": "old_diffusers"}, 0.6)]),
    ("sdxl9", [({"file_format": "kohya", "alpha": 2, **EVERYTHING}, 0.8)]),
    ("sdxl9", [({"file_format": "kohya_blocks", "texts": True}, 0.8)]),
    ("sdxl4", [({"file_format": "diffusers", **EVERYTHING}, 0.8), ({"file_format": "kohya"}, 0.5)]),
]


def entry_of(model: str, folder: Path) -> ModelEntry:
    family, channels = model[:-1], int(model[-1])
    return tiny_entry("tiny", make_tiny_model(folder, family=family, channels=channels), family=family)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.getbasetemp() / "tiny-models"


@pytest.fixture
def model(folder: Path) -> LoadedModel:
    return load_on_cpu(entry_of("sd9", folder))


@pytest.fixture
def files(model: LoadedModel, tmp_path: Path) -> Files:
    """Three of the UNet alone, and one of the text encoder alone."""
    lone = {"unet": False, "texts": True}
    return {
        name: write_lora(tmp_path / f"{name}.safetensors", model, seed=seed, **(lone if name == "words" else {}))
        for seed, name in enumerate(("ink", "oil", "chalk", "words"))
    }


def uses(**strengths: float) -> tuple[LoraUse, ...]:
    return tuple(LoraUse(name, strength) for name, strength in strengths.items())


def engine_with(model: LoadedModel, files: Files, folder: Path, **settings: Any) -> Any:
    return running_engine(
        entry_of("sd9", folder), load=lambda _entry: model, adapters=Adapters(addons_of(files)), **settings
    )


@pytest.mark.parametrize(("model_name", "asked"), ASKED, ids=lambda each: each if isinstance(each, str) else None)
def test_the_picture_is_that_of_the_stock_pipeline_with_the_same_loras(
    folder: Path, tmp_path: Path, model_name: str, asked: list[tuple[dict[str, Any], float]]
) -> None:
    entry = entry_of(model_name, folder)
    loaded = load_on_cpu(entry)
    names = [f"lora-{index}" for index in range(len(asked))]
    files = {
        name: write_lora(tmp_path / f"{name}.safetensors", loaded, seed=index, **made)
        for index, (name, (made, _)) in enumerate(zip(names, asked, strict=True))
    }
    strengths = [strength for _, strength in asked]
    painting = make_painting(loras=uses(**dict(zip(names, strengths, strict=True))))
    adapters = Adapters(addons_of(files, family=entry.family))
    with running_engine(entry, load=lambda _entry: loaded, adapters=adapters) as engine:
        [without] = engine.paint(make_painting())
        [painted] = engine.paint(painting)
        [again] = engine.paint(make_painting())
    stock = load_stock(entry.source.path)  # type: ignore[union-attr]  # a folder
    pristine = stock.scheduler.config
    for name in names:
        stock.load_lora_weights(str(tmp_path), weight_name=f"{name}.safetensors", adapter_name=name)
    stock.set_adapters(names, strengths)
    expected = paint_stock(stock, pristine, painting)

    assert np.abs(painted.astype(int) - expected).max() <= 1
    assert np.abs(painted.astype(int) - without).max() > 10, "the LoRA is seen"
    assert np.array_equal(without, again)


def test_alphas_of_each_layer_count(folder: Path, tmp_path: Path) -> None:
    """Stock reads these by names that no layer has: it is no measure here, but two files of one alpha each are."""
    entry = entry_of("sd9", folder)
    loaded = load_on_cpu(entry)
    whole = write_lora(tmp_path / "whole.safetensors", loaded, file_format="kohya", texts=True)
    tensors = load_file(whole)
    for name in tensors:
        if name.endswith("alpha") and ("to_k" in name or "q_proj" in name):
            tensors[name] = tensors[name] / 8
    save_file(tensors, tmp_path / "alphas.safetensors")
    for name in tensors:
        if name.endswith("alpha") and ("to_k" in name or "q_proj" in name):
            tensors[name] = tensors[name] * 8
            tensors[name.replace("alpha", "lora_up.weight")] /= 8
    save_file(tensors, tmp_path / "weights.safetensors")
    files = {name: tmp_path / f"{name}.safetensors" for name in ("whole", "alphas", "weights")}
    with running_engine(entry, load=lambda _entry: loaded, adapters=Adapters(addons_of(files))) as engine:
        whole_picture, by_alphas, by_weights = (
            engine.paint(make_painting(loras=uses(**{name: 1.0})))[0] for name in files
        )
    assert np.abs(by_alphas.astype(int) - by_weights).max() <= 1
    assert psnr(by_alphas, whole_picture) < BATCHED_PSNR


def test_a_dora_gives_the_rows_of_a_text_encoder_their_lengths(folder: Path, tmp_path: Path) -> None:
    """Stock leaves these lengths unread: the measure is a model with the weights that the DoRA stands for."""
    entry = entry_of("sd9", folder)
    loaded, changed = load_on_cpu(entry), load_on_cpu(entry)
    path = write_lora(tmp_path / "dora.safetensors", loaded, dora=True, unet=False, texts=True)
    tensors = load_file(path)
    for name, module in changed.lora_host.parts["text_encoder"].items():
        stem = f"text_encoder.{name}.lora_"
        if f"{stem}A.weight" in tensors:
            weight = module.weight + tensors[f"{stem}B.weight"] @ tensors[f"{stem}A.weight"]
            lengths = torch.linalg.vector_norm(weight, dim=1, keepdim=True)
            module.weight.data = tensors[f"{stem}magnitude_vector"][:, None] * weight / lengths
    with running_engine(entry, load=lambda _entry: changed) as engine:
        [expected] = engine.paint(make_painting())
    with engine_with(loaded, {"dora": path}, folder) as engine:
        [painted] = engine.paint(make_painting(loras=uses(dora=1.0)))
        [without] = engine.paint(make_painting())
    assert np.abs(painted.astype(int) - expected).max() <= 1
    assert psnr(painted, without) < BATCHED_PSNR


def test_a_strength_of_0_is_no_lora_bit_for_bit(model: LoadedModel, files: Files, folder: Path) -> None:
    with engine_with(model, files, folder) as engine:
        [without] = engine.paint(make_painting())
        [with_none] = engine.paint(make_painting(loras=uses(ink=0.0, words=0.0)))
        [one] = engine.paint(make_painting(loras=uses(ink=1.0)))
        [one_of_two] = engine.paint(make_painting(loras=uses(ink=1.0, oil=0.0)))
    assert np.array_equal(without, with_none)
    assert np.array_equal(one, one_of_two)


def test_the_order_of_loras_is_of_no_matter(model: LoadedModel, files: Files, folder: Path) -> None:
    with engine_with(model, files, folder) as engine:
        one = engine.paint(make_painting(loras=uses(ink=0.5, oil=0.8)))
        other = engine.paint(make_painting(loras=uses(oil=0.8, ink=0.5)))
    assert np.array_equal(one, other)


def test_prompts_are_encoded_under_the_loras_of_their_job_alone(model: LoadedModel, files: Files, folder: Path) -> None:
    with engine_with(model, files, folder) as engine:
        [without] = engine.paint(make_painting())
        encodes = model.prompts.encodes
        engine.paint(make_painting(loras=uses(ink=1.0)))
        assert model.prompts.encodes == encodes, "a LoRA of the UNet alone changes no encoding"
        [words] = engine.paint(make_painting(loras=uses(words=1.0)))
        [fewer] = engine.paint(make_painting(loras=uses(words=0.5)))
        assert model.prompts.encodes == encodes + 4
        [again] = engine.paint(make_painting(loras=uses(words=1.0)))
        assert model.prompts.encodes == encodes + 4
        assert np.array_equal(engine.paint(make_painting())[0], without)
    assert np.array_equal(words, again)
    assert psnr(words, without) < BATCHED_PSNR
    assert psnr(words, fewer) < BATCHED_PSNR


def test_no_lora_leaks_into_a_neighbour(model: LoadedModel, files: Files, folder: Path) -> None:
    sets = [{}, {"ink": 1.0}, {"ink": 0.4}, {"oil": 1.0}, {"words": 1.0}, {"ink": 1.0, "chalk": 0.7}]
    paintings = [
        make_painting(job_id=f"job-{index}", seeds=(7,), loras=uses(**asked), num_inference_steps=4 + index % 2)
        for index, asked in enumerate(sets)
    ]
    with engine_with(model, files, folder) as engine:
        alone = [engine.paint(painting)[0] for painting in paintings]
        # Two of each, so that those with the same LoRAs share calls.
        together = [pictures[0] for pictures in paint_together(engine, paintings * 2)]
    for pictures in (together[: len(sets)], together[len(sets) :]):
        likeness = np.array([[psnr(one, other) for other in pictures] for one in alone])
        assert (likeness.argmax(axis=1) == range(len(sets))).all()
        assert likeness.diagonal().min() >= BATCHED_PSNR
        assert likeness[~np.eye(len(sets), dtype=bool)].max() < BATCHED_PSNR - 5


def test_loras_share_calls_only_with_their_like_and_take_turns(model: LoadedModel, files: Files, folder: Path) -> None:
    with torch.inference_mode():
        adapters = Adapters(addons_of(files))
        shapes = set()
        for asked in ({}, {"ink": 1.0}, {"ink": 0.5}, {"oil": 1.0}, {"ink": 1.0, "oil": 0.0}):
            painting = make_painting(loras=uses(**asked))
            with adapters.fitted(model, painting, lambda: None) as fitted:
                [sample] = begin_samples(fitted, painting)
                shapes.add(sample.call_shape)
    assert len(shapes) == 4
    steps, sets = 6, [{"ink": 1.0}, {"oil": 1.0}, {"chalk": 1.0}]
    paintings = [
        make_painting(job_id=f"{job}", loras=uses(**asked), num_inference_steps=steps)
        for job, asked in enumerate(sets * 2)
    ]
    with engine_with(model, files, folder) as engine:
        before = model.lora_host.switches
        paint_together(engine, paintings)
        switches = model.lora_host.switches - before
    # In each tick all three have their turn, and one is on already.
    assert switches <= (len(sets) - 1) * (steps + len(paintings)) + len(paintings)
    assert switches >= (len(sets) - 1) * (steps - 1)


def live_tensor_bytes() -> int:
    gc.collect()
    # By type: other objects here warn when they are asked what they are.
    tensors = (each for each in gc.get_objects() if issubclass(type(each), torch.Tensor))
    return sum(each.untyped_storage().nbytes() for each in tensors)


def weights_digest(model: LoadedModel) -> str:
    digest = hashlib.sha256()
    for part in (model.unet, model.vae, *(tower.encoder for tower in model.prompts.towers)):
        for name, weights in part.state_dict().items():
            digest.update(name.encode())
            digest.update(weights.numpy().tobytes())
    return digest.hexdigest()


@torch.inference_mode()
def test_after_200_switches_the_model_is_as_freshly_loaded(model: LoadedModel, files: Files, folder: Path) -> None:
    sets = [uses(ink=1.0), uses(oil=0.5), uses(ink=0.3, words=1.0), (), uses(chalk=1.0, oil=-1.0)]
    adapters = Adapters(addons_of(files))
    painting = make_painting()

    def step(on: LoadedModel, *loras: LoraUse) -> torch.Tensor:
        asked = make_painting(loras=loras)
        with adapters.fitted(on, asked, lambda: None) as fitted:
            [sample] = begin_samples(fitted, asked)
            [noise] = predict_noise([sample])
        return noise

    firsts = [step(model, *asked) for asked in sets]
    before = live_tensor_bytes()
    for _, (asked, first) in zip(range(SWITCHES), itertools.cycle(zip(sets, firsts, strict=True))):
        assert torch.equal(step(model, *asked), first)
    assert model.lora_host.switches >= SWITCHES
    assert live_tensor_bytes() == before
    assert adapters.shelf.loads == len(files)

    fresh = load_on_cpu(entry_of("sd9", folder))
    assert weights_digest(model) == weights_digest(fresh)
    for asked in sets:
        assert torch.equal(step(model, *asked), step(fresh, *asked))
    with running_engine(entry_of("sd9", folder), load=lambda _entry: model) as used:
        picture = used.paint(painting)
    with running_engine(entry_of("sd9", folder), load=lambda _entry: fresh) as new:
        assert np.array_equal(picture, new.paint(painting))


def test_nothing_of_a_lora_stays_on_a_model_that_is_idle(model: LoadedModel, files: Files, folder: Path) -> None:
    with engine_with(model, files, folder) as engine:
        engine.paint(make_painting(loras=uses(ink=1.0)))
        until(lambda: model.lora_host.worn == ())
        assert not any(module._forward_hooks for module in model.unet.modules())
