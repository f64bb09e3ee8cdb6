"""A LoRA, an IP-adapter, skipped layers and a textual inversion at once: the stock pipeline's picture."""

from __future__ import annotations

import dataclasses
import itertools
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

from storage.addons import Embedding, IpAdapter
from storage.job import LoraUse
from tests.ip_adapters import adapter_tensors, make_image_encoder, write_adapter
from tests.loras import addons_of, write_lora
from tests.painting import LIBRARY_WARNINGS, load_on_cpu, load_stock, make_painting, paint_stock, psnr, running_engine
from tests.tiny_models import TEXT_WIDTH, make_tiny_model, tiny_entry
from worker.adapters import Adapters
from worker.errors import AddonUnavailable
from worker.ip_adapters import Look
from worker.loading import LoadedModel

pytestmark = LIBRARY_WARNINGS


BATCHED_PSNR = 50
WAIT_SECONDS = 30


def write_thing(path: Path, vectors: torch.Tensor) -> Embedding:
    save_file({"emb_params": vectors}, path)
    return Embedding(path.stem, (), "", "sd", path, "<thing>")


def write_plain_adapter(path: Path, model: LoadedModel, *, token_width: int = TEXT_WIDTH) -> IpAdapter:
    widths = [each.inner_dim for each in model.cross_attentions]
    tensors = adapter_tensors(plus=False, token_width=token_width, inner_widths=widths)
    return write_adapter(path, make_image_encoder(path.parent / "encoder"), tensors)


def test_jobs_with_bad_files_of_every_kind_at_once_leave_their_neighbours_pictures_alone(tmp_path: Path) -> None:
    entry = tiny_entry("tiny", make_tiny_model(tmp_path))
    model = load_on_cpu(entry)
    words = torch.randn(2, TEXT_WIDTH, generator=torch.Generator().manual_seed(1))
    thing = write_thing(tmp_path / "thing.safetensors", words)
    adapter = write_plain_adapter(tmp_path / "good.safetensors", model)
    picture = np.random.default_rng(3).integers(0, 256, (40, 48, 3), dtype=np.uint8)
    loras = {name: write_lora(tmp_path / f"{name}.safetensors", model, texts=True) for name in ("ink", "torn")}
    loras["torn"].write_bytes(loras["torn"].read_bytes()[:-9])
    plain = make_painting(job_id="plain", prompt="a <thing> on the dog", num_inference_steps=8)
    good = [
        plain,
        dataclasses.replace(plain, job_id="thing", embeddings=(thing,)),
        dataclasses.replace(plain, job_id="look", look=Look(adapter, picture, 0.8)),
        dataclasses.replace(plain, job_id="ink", loras=(LoraUse("ink", 1.0),)),
    ]
    torn = write_plain_adapter(tmp_path / "cut.safetensors", model)
    torn.path.write_bytes(torn.path.read_bytes()[:-9])
    wide = write_plain_adapter(tmp_path / "wide.safetensors", model, token_width=2 * TEXT_WIDTH)
    bad = [
        dataclasses.replace(plain, embeddings=(write_thing(tmp_path / "odd.safetensors", words[:, :5].clone()),)),
        dataclasses.replace(plain, embeddings=(write_thing(tmp_path / "nan.safetensors", words * float("nan")),)),
        dataclasses.replace(plain, look=Look(torn, picture, 0.8)),
        dataclasses.replace(plain, look=Look(wide, picture, 0.8)),
        dataclasses.replace(plain, loras=(LoraUse("torn", 1.0),)),
    ]
    bad = [dataclasses.replace(painting, job_id="bad") for painting in bad]
    with (
        running_engine(entry, load=lambda _entry: model, adapters=Adapters(addons_of(loras))) as engine,
        ThreadPoolExecutor(9) as threads,
    ):
        alone = [engine.paint(painting)[0] for painting in good]
        # Each neighbour beside each that is bad.
        order = [*itertools.chain(*zip(bad, good, strict=False)), *bad[len(good) :]]
        asked = [(painting, threads.submit(engine.paint, painting)) for painting in order]
        failures = [future.exception(WAIT_SECONDS) for painting, future in asked if painting.job_id == "bad"]
        painted = {
            painting.job_id: future.result(WAIT_SECONDS)[0] for painting, future in asked if painting.job_id != "bad"
        }
        again = [engine.paint(painting)[0] for painting in good]
    fields = {failure.field for failure in failures if isinstance(failure, AddonUnavailable)}
    assert len(failures) == len(bad)
    assert all(isinstance(failure, AddonUnavailable) for failure in failures)
    assert fields == {"embeddings_model", "ip_adapter_id", "lora_model"}
    for painting, expected, after in zip(good, alone, again, strict=True):
        assert psnr(painted[painting.job_id], expected) >= BATCHED_PSNR
        assert np.array_equal(after, expected), "nothing of the others has stayed"
    assert max(psnr(one, other) for one, other in itertools.combinations(alone, 2)) < BATCHED_PSNR


def test_all_that_a_job_can_say_gives_the_stock_pipelines_picture(tmp_path: Path) -> None:
    folder = make_tiny_model(tmp_path)
    entry = tiny_entry("tiny", folder)
    model = load_on_cpu(entry)
    ink = write_lora(tmp_path / "ink.safetensors", model, texts=True)
    vectors = torch.randn(2, TEXT_WIDTH, generator=torch.Generator().manual_seed(1))
    save_file({"emb_params": vectors}, tmp_path / "thing.safetensors")
    thing = Embedding("thing", (), "", "sd", tmp_path / "thing.safetensors", "<thing>")
    tensors = adapter_tensors(
        plus=True, token_width=TEXT_WIDTH, inner_widths=[each.inner_dim for each in model.cross_attentions]
    )
    adapter = write_adapter(
        tmp_path / "models" / "plus.safetensors", make_image_encoder(tmp_path / "models" / "image_encoder"), tensors
    )
    coarse = np.random.default_rng(3).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    picture = Image.fromarray(coarse).resize((48, 40))
    plain = make_painting(prompt="a <thing> on the dog", clip_skip=1)
    painting = dataclasses.replace(
        plain,
        loras=(LoraUse("ink", 0.8),),
        embeddings=(thing,),
        look=Look(adapter, np.asarray(picture), 0.6),
    )
    adapters = Adapters(addons_of({"ink": ink}))
    with running_engine(entry, load=lambda _entry: model, adapters=adapters) as engine:
        before = engine.paint(plain)[0]
        painted = engine.paint(painting)[0]
        after = engine.paint(plain)[0]

    stock = load_stock(folder)
    stock.load_lora_weights(str(tmp_path), weight_name="ink.safetensors", adapter_name="ink")
    stock.set_adapters(["ink"], [0.8])
    stock.load_textual_inversion(str(thing.path), token="<thing>")  # a word
    stock.load_ip_adapter(str(tmp_path), subfolder="models", weight_name="plus.safetensors", local_files_only=True)
    stock.set_ip_adapter_scale(0.6)
    # With transformers from 5.6 on, clip_skip of the stock pipeline looks for this name in vain.
    stock.text_encoder.__dict__["text_model"] = stock.text_encoder
    expected = paint_stock(stock, stock.scheduler.config, painting, clip_skip=1, ip_adapter_image=picture)
    assert np.abs(painted.astype(int) - expected).max() <= 1
    assert np.abs(painted.astype(int) - before).max() > 10
    assert np.array_equal(before, after)
