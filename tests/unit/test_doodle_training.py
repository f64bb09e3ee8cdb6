"""The program that trains the built-in model, on a model so small that it learns nothing, but end to end."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from PIL import Image
from torch import nn
from torch.nn.functional import avg_pool2d

from storage.model_catalog import Folder, load_catalog
from storage.settings import StorageSettings
from tests.painting import LIBRARY_WARNINGS, load_on_cpu, make_painting, running_engine
from worker.builtin.train.__main__ import main
from worker.builtin.train.captions import KNOWN_WORDS, WORDS
from worker.builtin.train.checkpoint import load_checkpoint, save_checkpoint
from worker.builtin.train.growing import grown
from worker.builtin.train.latents import Ring, encode_scenes
from worker.builtin.train.optimiser import Optimiser, orthogonal
from worker.builtin.train.painting import PainterTraining
from worker.builtin.train.parts import fresh_autoencoder, fresh_painter, fresh_unet, painter_from
from worker.builtin.train.recipe import Recipe
from worker.builtin.train.rendering import batch_of_size, make_scenes, scenes_from, size_of_step
from worker.builtin.train.words import load_tokenizer, read_vocabulary, save_tokenizer, tokenize, write_tokenizer

pytestmark = LIBRARY_WARNINGS

CPU = torch.device("cpu")
ROOT = Path(__file__).parents[2]
TOGETHER_SECONDS = 300
TINY = Recipe(
    unet_channels=(16, 16, 16),
    unet_groups=8,
    heads=2,
    text_width=16,
    text_layers=1,
    vae_channels=8,
    vae_batch=2,
    vae_joint_steps=3,
    vae_decoder_steps=2,
    vae_crop=32,
    sizes=((32, 0.7), (64, 0.3)),
    largest_batch=6,
    ring_scenes=8,
    learning_rate=1e-3,
    warmup_steps=2,
)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder, WORDS)
    return folder


def training(tokenizer: Path, *, samples: int = 100, **changes: Any) -> PainterTraining:
    recipe = dataclasses.replace(TINY, **changes)
    return PainterTraining(
        recipe, fresh_painter(recipe, tokenizer), fresh_autoencoder(recipe), samples=samples, device=CPU
    )


def test_one_command_trains_goes_on_and_leaves_a_model_that_paints(tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = [str(out), "--device", "cpu", "--trial-wishes", "2", "--trial-size", "128"]
    arguments += ["--learning-rate", "0.002", "--worlds", "narrow:1,things:2"]
    main([*arguments, "--samples", "12"], TINY)
    first = load_checkpoint(out / "painter-0.pt", CPU)
    assert first is not None and first["samples"] >= 12 and first["recipe"]["learning_rate"] == 0.002
    assert first["recipe"]["worlds"] == (("narrow", 1.0), ("things", 2.0))
    main([*arguments, "--samples", "24"], TINY)
    second = load_checkpoint(out / "painter-0.pt", CPU)
    assert second is not None and second["step"] > first["step"]

    assert len(list((out / "grids").glob("*.png"))) == 2
    with Image.open(out / "grids" / f"{second['samples']:08d}.png") as grid:
        assert grid.width == 4 * 256
    lines = (out / "obedience.log").read_text().splitlines()
    assert len(lines) == 2 and all("1 of something sitting on a bench" in line for line in lines)
    assert (out / "best" / "model_index.json").is_file()
    assert not list(out.rglob("*.bin"))

    doodle = load_catalog(StorageSettings(models_file=None)).default
    entry = dataclasses.replace(doodle, id="trained", source=Folder(out / "model"))
    assert set(json.loads((out / "model" / "words.json").read_text())) == set(KNOWN_WORDS)
    assert "inpaintd" not in (out / "model" / "unet" / "config.json").read_text()
    with running_engine(entry, load=load_on_cpu) as engine:
        [picture] = engine.paint(make_painting("trained", prompt="a red circle", num_inference_steps=2))
    assert picture.shape == (64, 64, 3) and picture.std() > 0


def test_a_training_begins_with_given_weights_and_goes_on_without_them(tmp_path: Path) -> None:
    arguments = ["--device", "cpu", "--trial-wishes", "0", "--trial-size", "64", "--samples"]
    main([str(tmp_path / "one"), *arguments, "6"], TINY)
    main([str(tmp_path / "two"), "--weights", str(tmp_path / "one" / "model"), *arguments, "6"], TINY)
    main([str(tmp_path / "two"), *arguments, "12"], TINY)
    vae = "vae/diffusion_pytorch_model.safetensors"
    assert (tmp_path / "two" / "model" / vae).read_bytes() == (tmp_path / "one" / "model" / vae).read_bytes()
    state = load_checkpoint(tmp_path / "two" / "painter-0.pt", CPU)
    assert state is not None and state["samples"] >= 12


def train_together(out: Path, samples: int) -> subprocess.CompletedProcess[str]:
    program = [
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "tests/drivers/train_together.py",
    ]
    arguments = [str(out), "--device", "cpu", "--trial-wishes", "0", "--trial-size", "64", "--samples", str(samples)]
    return subprocess.run(
        [sys.executable, *program, *arguments],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=TOGETHER_SECONDS,
        check=False,
    )


def test_two_processes_train_one_model_and_go_on_only_from_the_same_step(tmp_path: Path) -> None:
    files = [tmp_path / f"painter-{rank}.pt" for rank in range(2)]
    done = train_together(tmp_path, 24)
    assert done.returncode == 0, done.stderr
    first, second = (load_checkpoint(file, CPU) for file in files)
    assert first is not None and second is not None
    assert first["step"] == second["step"]
    assert all(torch.equal(second["weights"][name], value) for name, value in first["weights"].items())
    assert not torch.equal(first["rings"][32]["target"], second["rings"][32]["target"])

    torch.save({**second, "step": second["step"] - 1}, files[1])
    refused = train_together(tmp_path, 48)
    assert refused.returncode != 0
    assert f"begin with --weights {tmp_path}/model" in refused.stderr


def test_a_training_goes_on_with_batches_of_another_size(tokenizer: Path) -> None:
    small = training(tokenizer)
    small.advance()
    large = training(tokenizer, ring_scenes=200)
    large.load(small.state())
    large.advance()
    assert large.step == 2


def test_other_weights_do_not_get_into_a_training_that_has_begun(tmp_path: Path) -> None:
    arguments = ["--device", "cpu", "--trial-wishes", "0", "--trial-size", "64", "--samples"]
    main([str(tmp_path / "one"), *arguments, "6"], TINY)
    main([str(tmp_path / "two"), *arguments, "6", "--seed", "1"], TINY)
    vae = "vae/diffusion_pytorch_model.safetensors"
    own = (tmp_path / "two" / vae).read_bytes()
    main([str(tmp_path / "two"), *arguments, "12", "--weights", str(tmp_path / "one" / "model")], TINY)
    assert (tmp_path / "two" / vae).read_bytes() == own


def test_an_interrupted_training_goes_on_bit_for_bit(tokenizer: Path, tmp_path: Path) -> None:
    whole = training(tokenizer)
    losses = [whole.advance() for _ in range(9)]
    part = training(tokenizer)
    for _ in range(5):
        part.advance()
    save_checkpoint(tmp_path / "state.pt", part.state())
    resumed = training(tokenizer)
    state = load_checkpoint(tmp_path / "state.pt", CPU)
    assert state is not None
    resumed.load(state)
    assert [resumed.advance() for _ in range(4)] == losses[5:]
    expected, got = whole.state(), resumed.state()
    assert got["samples"] == expected["samples"]
    for kind in ("weights", "averages"):
        assert all(torch.equal(got[kind][name], value) for name, value in expected[kind].items())


def test_the_learning_rate_rises_stays_and_falls(tokenizer: Path) -> None:
    state = training(tokenizer, samples=1000, learning_rate=1.0, warmup_steps=10, cool_down_share=0.25)
    rates = []
    for step, samples in ((0, 0), (9, 100), (50, 700), (60, 875), (70, 1000)):
        state.step, state.samples = step, samples
        rates.append(state.learning_rate)
    assert rates == pytest.approx([0.1, 1.0, 1.0, 0.5, 0.03])


def test_a_small_model_learns_something(tokenizer: Path) -> None:
    state = training(tokenizer, sizes=((32, 1.0),), noisy_share=0.0, largest_batch=12, learning_rate=3e-3)
    losses = [state.advance() for _ in range(60)]
    assert np.mean(losses[-20:]) < 0.8 * np.mean(losses[:5])


def test_averaged_weights_are_lent_and_given_back(tokenizer: Path) -> None:
    state = training(tokenizer)
    for _ in range(4):
        state.advance()
    own = {name: weight.detach().clone() for name, weight in state.painter.parameters().items()}
    with state.averaged() as painter:
        lent = {name: weight.detach().clone() for name, weight in painter.parameters().items()}
    assert any(not torch.equal(lent[name], own[name]) for name in own)
    assert all(torch.equal(weight, own[name]) for name, weight in state.painter.parameters().items())


@torch.no_grad()
def test_a_grown_unet_begins_with_what_the_smaller_one_does_at_half_of_the_size() -> None:
    doodle = load_catalog(StorageSettings(models_file=None)).default
    assert isinstance(doodle.source, Folder)
    small = UNet2DConditionModel.from_pretrained(doodle.source.path / "unet", torch_dtype=torch.float32)
    channels = small.config.block_out_channels
    large = grown(small, fresh_unet(dataclasses.replace(Recipe(), unet_channels=(channels[0], *channels))))
    torch.manual_seed(2)
    seen, timesteps, text = torch.randn(2, 9, 16, 16), torch.tensor([300, 900]), torch.randn(2, 32, 128)
    before = small(seen, timesteps, text).sample
    after = large(seen.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3), timesteps, text).sample
    likeness = torch.corrcoef(torch.stack([before.flatten(), avg_pool2d(after, 2).flatten()]))[0, 1]
    assert after.shape == (2, 4, 32, 32) and likeness > 0.9


@torch.no_grad()
def test_a_unet_that_comes_to_see_the_text_on_more_levels_does_the_same_at_first() -> None:
    torch.manual_seed(3)
    small = fresh_unet(dataclasses.replace(TINY, text_levels=1)).eval()
    large = grown(small, fresh_unet(dataclasses.replace(TINY, text_levels=3))).eval()
    assert sum(each.numel() for each in large.parameters()) > sum(each.numel() for each in small.parameters())
    seen, timesteps, text = torch.randn(2, 9, 16, 16), torch.tensor([300, 900]), torch.randn(2, 32, 16)
    torch.testing.assert_close(large(seen, timesteps, text).sample, small(seen, timesteps, text).sample)
    with pytest.raises(ValueError, match="attentions"):
        grown(large, small)


def test_processes_that_train_together_work_at_different_sizes() -> None:
    recipe = dataclasses.replace(TINY, sizes=((64, 0.5), (256, 0.5)), batch=1, largest_batch=16)
    pairs = [tuple(size_of_step(recipe, rank, step) for rank in range(2)) for step in range(40)]
    assert set(pairs) == {(64, 64), (64, 256), (256, 64), (256, 256)}
    assert (batch_of_size(recipe, 64), batch_of_size(recipe, 256), batch_of_size(recipe, 512)) == (16, 1, 1)


def test_scenes_do_not_depend_on_who_draws_them() -> None:
    together = make_scenes(TINY, 0, 4, range(6))
    for index, scene in enumerate(together):
        [alone] = make_scenes(TINY, 0, 4, [index])
        assert np.array_equal(alone.picture, scene.picture)
    assert not np.array_equal(make_scenes(TINY, 1, 4, [0])[0].picture, together[0].picture)


def test_renderers_draw_the_same_scenes_in_the_same_order() -> None:
    inline, aside = scenes_from(TINY, 0, 2, renderers=0), scenes_from(TINY, 0, 2, renderers=2)
    for _ in range(3):
        for one, other in zip(next(inline), next(aside), strict=True):
            assert one.caption == other.caption
            assert np.array_equal(one.picture, other.picture)
    aside.close()


def test_the_ring_keeps_the_latest_scenes(tokenizer: Path) -> None:
    ring = Ring(4, 32, CPU)
    autoencoder, words = fresh_autoencoder(TINY), load_tokenizer(tokenizer)
    batches = [encode_scenes(make_scenes(TINY, 0, 0, [number, number + 10]), autoencoder, words) for number in range(3)]
    for batch in batches:
        ring.add(batch)
    drawn = ring.draw(60, torch.Generator().manual_seed(0)).target
    held = torch.cat([batches[1].target, batches[2].target]).float()
    matches = (drawn[:, None] == held[None]).flatten(2).all(dim=-1)
    assert matches.any(dim=1).all() and matches.any(dim=0).all()


def test_every_word_of_the_world_is_one_token_and_others_are_pieces(tokenizer: Path) -> None:
    words = load_tokenizer(tokenizer)
    assert all(len(words(word).input_ids) == 3 for word in WORDS)
    assert len(words("elephant").input_ids) > 4
    tokens = tokenize(words, ["a red circle", ""])
    assert tokens.shape == (2, 32)


def test_equal_words_always_make_equal_vocabularies(tmp_path: Path, tokenizer: Path) -> None:
    for number in range(3):
        write_tokenizer(tmp_path / str(number), reversed(WORDS))
        for name in ("vocab.json", "merges.txt"):
            assert (tmp_path / str(number) / name).read_bytes() == (tokenizer / name).read_bytes()


def test_a_saved_tokenizer_says_the_same_in_all_its_files(tmp_path: Path, tokenizer: Path) -> None:
    words = load_tokenizer(tokenizer)
    tokenize(words, ["a red circle"])
    save_tokenizer(tmp_path, words)
    fast = json.loads((tmp_path / "tokenizer.json").read_text())
    assert fast["padding"] is None and fast["truncation"] is None
    assert read_vocabulary(tmp_path) == fast["model"]["vocab"] == read_vocabulary(tokenizer)
    assert (tmp_path / "merges.txt").read_text() == (tokenizer / "merges.txt").read_text()


def test_a_start_from_other_weights_keeps_what_the_words_meant(tokenizer: Path) -> None:
    doodle = load_catalog(StorageSettings(models_file=None)).default
    assert isinstance(doodle.source, Folder)
    start = doodle.source.path
    painter = painter_from(start, Recipe(), tokenizer)
    old, new = read_vocabulary(start / "tokenizer"), read_vocabulary(tokenizer)
    before = load_on_cpu(doodle).prompts.towers[0]
    [rows] = [weight for name, weight in painter.parameters().items() if name.endswith("token_embedding.weight")]
    [were] = [weight for name, weight in before.encoder.named_parameters() if name.endswith("token_embedding.weight")]
    for word in ("red", "circle", "background"):
        assert torch.equal(rows[new[f"{word}</w>"]], were[old[f"{word}</w>"]])
    hidden = painter.text_encoder.eval()(tokenize(painter.tokenizer, ["a red circle"]))[0]
    expected = before.encoder(tokenize(before.tokenizer, ["a red circle"]))[0]
    torch.testing.assert_close(hidden, expected)


def test_the_optimiser_brings_a_small_problem_to_its_minimum() -> None:
    torch.manual_seed(1)
    layer, target = nn.Linear(6, 4), nn.Linear(6, 4)
    optimiser, inputs = Optimiser(dict(layer.named_parameters())), torch.randn(64, 6)
    for step in range(200):
        loss = ((layer(inputs) - target(inputs).detach()) ** 2).mean()
        layer.zero_grad()
        loss.backward()
        optimiser.step(0.05 * (1 - step / 200))
    assert loss < 1e-3


def test_orthogonal_brings_all_singular_values_near_one() -> None:
    torch.manual_seed(1)
    values = torch.linalg.svdvals(orthogonal(torch.randn(3, 24, 8)))
    assert ((values > 0.6) & (values < 1.3)).all()
