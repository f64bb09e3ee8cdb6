"""Prompt encodings: the stock pipeline's numbers, and each text once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from compel.embeddings_provider import EmbeddingsProvider, SplitLongTextMode

from storage.job import WeightedPrompt
from tests.painting import LIBRARY_WARNINGS, load_on_cpu, load_stock
from tests.tiny_models import make_tiny_model, tiny_entry
from worker.errors import PromptTooLong
from worker.prompts import PromptEncoder, Reading
from worker.windows import MAX_WINDOWS

pytestmark = LIBRARY_WARNINGS


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.getbasetemp() / "tiny-models")


@pytest.fixture
def prompts(folder: Path) -> PromptEncoder:
    return load_on_cpu(tiny_entry("tiny", folder)).prompts


@pytest.mark.parametrize("text", ["", "a red cat", "Ünïcödé, 1:2 & emoji \N{CAT FACE}", "the cat " * 37 + "red"])
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
def test_a_long_prompt_is_read_to_its_end_in_windows(folder: Path, prompts: PromptEncoder) -> None:
    words = ["the", "cat", "red", "a", "dog"] * 30
    expected = [
        load_stock(folder).encode_prompt(" ".join(words[start : start + 75]), "cpu", 1, False)[0] for start in (0, 75)
    ]
    # Two texts in one call of the encoder differ from one in their last bits.
    torch.testing.assert_close(prompts.encode(" ".join(words)).hidden, torch.cat(expected, dim=1))
    assert prompts.encode(" ".join([*words, "on"])).hidden.shape[1] == 3 * 77


@torch.inference_mode()
def test_weights_are_compels(prompts: PromptEncoder) -> None:
    [tower] = prompts.towers
    compel = EmbeddingsProvider(
        tower.tokenizer, tower.encoder, truncate=False, split_long_text_mode=SplitLongTextMode.BRUTAL
    )
    for text, fragments, weights in (
        ("a (red:1.4) cat", ["a ", "red", " cat"], [1.0, 1.4, 1.0]),
        ("a ((red)) (cat:2.5)" + " on the dog" * 40, ["a ", "red", "cat", " on the dog" * 40], [1.0, 1.21, 2.5, 1.0]),
    ):
        expected = compel.get_embeddings_for_weighted_prompt_fragments([fragments], [weights])
        torch.testing.assert_close(prompts.encode(text).hidden, expected)


@torch.inference_mode()
def test_a_word_weighed_down_lies_between_itself_and_no_word(prompts: PromptEncoder) -> None:
    plain, down, off = (prompts.encode(text).hidden for text in ("a cat", "a (cat:0.25)", "a (cat:0)"))
    nothing = prompts.encode("").hidden
    torch.testing.assert_close(off[:, 2], nothing[:, 2])
    torch.testing.assert_close(down[:, 2], nothing[:, 2] + 0.25 * (plain[:, 2] - nothing[:, 2]))
    untouched = torch.arange(77) != 2
    assert torch.equal(down[:, untouched], plain[:, untouched])


@pytest.mark.parametrize("text", ["(((a red cat", r"a \(red\) cat", "sad :( cat", "()a red cat[]"])
@torch.inference_mode()
def test_brackets_that_weigh_nothing_leave_a_plain_prompt(prompts: PromptEncoder, text: str) -> None:
    plain = text.replace("\\", "").replace("()", "").replace("[]", "")
    ids = prompts.towers[0].tokenizer(plain, padding="max_length", return_tensors="pt").input_ids
    assert torch.equal(prompts.encode(text).hidden, prompts.towers[0].encoder(ids)[0])


@torch.inference_mode()
def test_layers_are_left_out_as_the_stock_pipeline_of_xl_does(tmp_path: Path) -> None:
    folder = make_tiny_model(tmp_path, family="sdxl")
    prompts = load_on_cpu(tiny_entry("tiny", folder, family="sdxl")).prompts
    expected = load_stock(folder).encode_prompt("a red cat", device="cpu", clip_skip=1)
    ours = prompts.encode("a red cat", Reading(clip_skip=1))
    assert torch.equal(ours.hidden, expected[0])
    assert ours.pooled is not None
    assert torch.equal(ours.pooled, expected[2])
    assert prompts.max_clip_skip == 1
    assert not torch.equal(ours.hidden, prompts.encode("a red cat").hidden)


@torch.inference_mode()
def test_a_reading_is_kept_apart_from_another_of_the_same_text(prompts: PromptEncoder) -> None:
    readings = [Reading(), Reading(clip_skip=1), Reading(clip_skip=2), Reading()]
    hidden = [prompts.encode("a cat", reading).hidden for reading in readings]
    assert prompts.encodes == 3
    assert torch.equal(hidden[0], hidden[3])
    assert not any(torch.equal(hidden[0], other) for other in hidden[1:3])


@pytest.mark.parametrize(
    "text",
    ["猫" * 20_000, "\N{CAT FACE}" * 20_000, "(" * 20_000, "a " * 10_000, "(a)[b]" * 3_000, "(a:1.1)[b][[c]]" * 900],
    ids=lambda text: text[:5],
)
@torch.inference_mode()
def test_a_hostile_prompt_is_refused_before_any_window_is_read(prompts: PromptEncoder, text: str) -> None:
    with pytest.raises(PromptTooLong), counted_windows(prompts) as windows:
        prompts.encode(text)
    assert not windows


@pytest.mark.parametrize("text", ["(((cat)))" * 130, "a " * 1200, "(" * 1000 + "a" + ")" * 1000, "[](){}" * 500])
@torch.inference_mode()
def test_no_prompt_takes_more_windows_than_the_limit(prompts: PromptEncoder, text: str) -> None:
    with counted_windows(prompts) as windows:
        hidden = prompts.encode(text).hidden
    assert sum(windows) <= MAX_WINDOWS + 1, "all of the text, and one empty window to weigh from"
    assert hidden.isfinite().all()


@torch.inference_mode()
def test_many_texts_of_one_job_have_one_limit(prompts: PromptEncoder) -> None:
    texts = [WeightedPrompt(f"{'the cat ' * 90}{index}", 1.0) for index in range(100)]
    with pytest.raises(PromptTooLong), counted_windows(prompts) as windows:
        prompts.encode_mean(texts)
    assert sum(windows) <= 2 * MAX_WINDOWS


@contextmanager
def counted_windows(prompts: PromptEncoder) -> Iterator[list[int]]:
    """How many windows each call of the text encoder reads."""
    windows: list[int] = []
    encoder = prompts.towers[0].encoder
    hook = encoder.get_input_embeddings().register_forward_hook(
        lambda _module, ids, _output: windows.append(len(ids[0]))
    )
    try:
        yield windows
    finally:
        hook.remove()


@torch.inference_mode()
def test_the_texts_used_last_are_kept(folder: Path) -> None:
    model = load_on_cpu(tiny_entry("tiny", folder))
    encoder = PromptEncoder(model.prompts.towers, cache_entries=2)
    for text in ("a", "the", "a", "red", "a", "the"):
        encoder.encode(text)
    assert encoder.encodes == 4, "'the' made room for 'red'"


@torch.inference_mode()
def test_a_long_text_takes_the_room_of_several(folder: Path) -> None:
    model = load_on_cpu(tiny_entry("tiny", folder))
    encoder = PromptEncoder(model.prompts.towers, cache_entries=3)
    for text in ("a", "the", "a red dog " * 40, "a", "the"):
        encoder.encode(text)
    assert encoder.encodes == 5, "'the' had to leave, then, for 'a', the long one"


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


@torch.inference_mode()
def test_texts_of_several_lengths_and_with_brackets_have_one_mean(prompts: PromptEncoder) -> None:
    short, long = "a (cat:1.5)", "a red dog " * 40
    mixed = prompts.encode_mean([WeightedPrompt(short, 1.0), WeightedPrompt(long, 3.0)]).hidden
    assert mixed.shape[1] == 2 * 77
    lengthened = torch.cat([prompts.encode(short).hidden, prompts.encode("").hidden], dim=1)
    assert torch.allclose(mixed, 0.25 * lengthened + 0.75 * prompts.encode(long).hidden, atol=1e-6)
