"""Prompt encodings: the stock pipeline's numbers, and each text once."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from storage.job import WeightedPrompt
from tests.painting import LIBRARY_WARNINGS, load_on_cpu, load_stock
from tests.tiny_models import make_tiny_model, tiny_entry
from worker.prompts import PromptEncoder

pytestmark = LIBRARY_WARNINGS


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.getbasetemp() / "tiny-models")


@pytest.fixture
def prompts(folder: Path) -> PromptEncoder:
    return load_on_cpu(tiny_entry("tiny", folder)).prompts


@pytest.mark.parametrize("text", ["", "a red cat", "Ünïcödé, (weights:1.2) & emoji \N{CAT FACE}", "the cat " * 90])
@torch.inference_mode()
def test_a_prompt_is_encoded_bit_for_bit_as_the_stock_pipeline_does(
    folder: Path, prompts: PromptEncoder, text: str
) -> None:
    expected, unconditional = load_stock(folder).encode_prompt(
        text, "cpu", num_images_per_prompt=1, do_classifier_free_guidance=True
    )
    assert torch.equal(prompts.encode(text).hidden, expected)
    assert torch.equal(prompts.encode("").hidden, unconditional)


@pytest.mark.parametrize("zeros", [True, False])
@torch.inference_mode()
def test_a_prompt_of_xl_is_encoded_bit_for_bit_as_the_stock_pipeline_does(tmp_path: Path, zeros: bool) -> None:
    folder = make_tiny_model(tmp_path, family="sdxl", force_zeros_for_empty_prompt=zeros)
    prompts = load_on_cpu(tiny_entry("tiny", folder, family="sdxl")).prompts
    pipeline = load_stock(folder)
    for negative in ("", "a blue dog"):
        hidden, unconditional, pooled, unconditional_pooled = pipeline.encode_prompt(
            "a red cat", device="cpu", do_classifier_free_guidance=True, negative_prompt=negative or None
        )
        ours = prompts.encode("a red cat")
        nothing = prompts.encode_negative(negative, ours)
        assert torch.equal(ours.hidden, hidden)
        assert torch.equal(nothing.hidden, unconditional)
        assert ours.pooled is not None
        assert nothing.pooled is not None
        assert torch.equal(ours.pooled, pooled)
        assert torch.equal(nothing.pooled, unconditional_pooled)
    assert bool((prompts.encode_negative("", ours).hidden == 0).all()) is zeros


@torch.inference_mode()
def test_the_texts_used_last_are_kept(folder: Path) -> None:
    model = load_on_cpu(tiny_entry("tiny", folder))
    encoder = PromptEncoder(model.prompts.towers, cache_entries=2)
    for text in ("a", "the", "a", "red", "a", "the"):
        encoder.encode(text)
    assert encoder.encodes == 4, "'the' made room for 'red'"


@torch.inference_mode()
def test_without_a_cache_every_text_is_encoded(folder: Path) -> None:
    model = load_on_cpu(tiny_entry("tiny", folder))
    encoder = PromptEncoder(model.prompts.towers, cache_entries=0)
    assert torch.equal(encoder.encode("a").hidden, encoder.encode("a").hidden)
    assert encoder.encodes == 2


@torch.inference_mode()
def test_several_texts_are_one_encoding_their_mean_by_weight(prompts: PromptEncoder) -> None:
    def mean(*weighted: tuple[str, float]) -> torch.Tensor:
        return prompts.encode_mean([WeightedPrompt(text, weight) for text, weight in weighted]).hidden

    cat, dog = prompts.encode("a red cat").hidden, prompts.encode("a dog").hidden
    mixed = mean(("a red cat", 3.0), ("a dog", 1.0))
    assert torch.allclose(mixed, 0.75 * cat + 0.25 * dog)
    assert torch.equal(mixed, mean(("a red cat", 0.75), ("a dog", 0.25)))
    assert torch.allclose(mean(("a dog", -0.3), ("a dog", -2.0)), dog)
