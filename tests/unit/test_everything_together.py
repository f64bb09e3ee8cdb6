"""A LoRA, an IP-adapter, skipped layers and a textual inversion at once: the stock pipeline's picture."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

from storage.addons import Embedding
from storage.job import LoraUse
from tests.ip_adapters import adapter_tensors, make_image_encoder, write_adapter
from tests.loras import addons_of, write_lora
from tests.painting import LIBRARY_WARNINGS, load_on_cpu, load_stock, make_painting, paint_stock, running_engine
from tests.tiny_models import TEXT_WIDTH, make_tiny_model, tiny_entry
from worker.adapters import Adapters
from worker.ip_adapters import Look

pytestmark = LIBRARY_WARNINGS


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
