"""Files of LoRAs, VAEs, IP-adapters and embeddings that are replaced while a worker runs: the next job has the new."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from storage.addons import Embedding, IpAdapter
from storage.job import LoraUse
from tests.ip_adapters import adapter_tensors, make_image_encoder, write_adapter
from tests.loras import addons_of, write_lora, write_vae
from tests.painting import CPU, LIBRARY_WARNINGS, load_on_cpu, make_painting, running_engine
from tests.studio import folder, loaded
from tests.tiny_models import TEXT_WIDTH, tiny_entry
from worker.adapters import Adapters
from worker.inversions import load_inversions
from worker.ip_adapter_files import load_image_encoder, load_weights
from worker.ip_adapters import Look
from worker.loading import LoadedModel
from worker.preparing import begin_samples
from worker.sample import Painting
from worker.vaes import load_vae
from worker.versions import version_of

__all__ = ["folder", "loaded"]

pytestmark = LIBRARY_WARNINGS

WAIT_SECONDS = 20
KINDS = ("LoRA", "LoRA of texts", "VAE", "IP-adapter", "image encoder", "embedding")


class Shop:
    """One add-on of a kind on disk, and a painting with it."""

    def __init__(self, kind: str, model: LoadedModel, home: Path) -> None:
        self.kind, self.model, self.home = kind, model, home
        self.path = home / ("thing" if kind == "VAE" else "thing.safetensors")
        self.encoder = home / "encoder"
        self.write(seed=1)
        loras, vaes = ({name: self.path} if name in kind else {} for name in ("LoRA", "VAE"))
        self.addons = addons_of(loras, vaes)
        self.painting = self._painting()

    def write(self, seed: int) -> None:
        """Over what was there, if anything."""
        if "LoRA" in self.kind:
            texts = "texts" in self.kind
            write_lora(self.path, self.model, seed=seed, unet=not texts, texts=texts)
        elif self.kind == "VAE":
            write_vae(self.path, seed=seed)
        elif self.kind == "embedding":
            save_file({"emb_params": torch.randn(2, TEXT_WIDTH, generator=torch.manual_seed(seed))}, self.path)
        else:
            self._write_adapter(seed)
        # However coarse the clock of the disk is.
        changed = self.encoder if self.kind == "image encoder" else self.path
        for place in (self.path, self.encoder):
            for file in place.glob("*") if place.is_dir() else [place]:
                if file.exists():
                    time = seed if place == changed else 1
                    os.utime(file, (time, time))

    def _write_adapter(self, seed: int) -> None:
        seeds = (seed, 1) if self.kind == "IP-adapter" else (1, seed)
        widths = [each.inner_dim for each in self.model.cross_attentions]
        tensors = adapter_tensors(plus=False, token_width=TEXT_WIDTH, inner_widths=widths, seed=seeds[0])
        write_adapter(self.path, make_image_encoder(self.encoder), tensors)
        file = self.encoder / "model.safetensors"
        save_file({name: each * seeds[1] for name, each in load_file(file).items()}, file, metadata={"format": "pt"})

    def _painting(self) -> Painting:
        plain = make_painting(num_inference_steps=3, prompt="a <thing>")
        if "LoRA" in self.kind:
            return dataclasses.replace(plain, loras=(LoraUse("LoRA", 1.0),))
        if self.kind == "VAE":
            return dataclasses.replace(plain, vae="VAE", strength=0.7)
        if self.kind == "embedding":
            return dataclasses.replace(plain, embeddings=(self.embedding,))
        adapter = IpAdapter("thing", (), "thing", "sd", self.path, self.encoder)
        return dataclasses.replace(plain, look=Look(adapter, plain.picture, 0.8))

    @property
    def embedding(self) -> Embedding:
        return Embedding("thing", (), "thing", "sd", self.path, "<thing>")


def paint_afresh(shop: Shop, folder: Path) -> Any:
    """By an engine that has seen nothing yet."""
    with running_engine(tiny_entry("tiny", folder), adapters=Adapters(shop.addons)) as engine:
        return engine.paint(shop.painting)[0]


@pytest.mark.parametrize("kind", KINDS)
def test_the_next_job_has_what_the_file_has_become_and_the_old_is_let_go(
    kind: str, folder: Path, loaded: LoadedModel, tmp_path: Path
) -> None:
    shop = Shop(kind, loaded, tmp_path)
    adapters = Adapters(shop.addons)
    with running_engine(tiny_entry("tiny", folder), adapters=adapters) as engine:
        [first] = engine.paint(shop.painting)
        held, loads = adapters.shelf.held_bytes, adapters.shelf.loads
        assert np.array_equal(engine.paint(shop.painting)[0], first)
        assert adapters.shelf.loads == loads, "the same file is not read again"
        shop.write(seed=2)
        [second] = engine.paint(shop.painting)
        assert adapters.shelf.held_bytes == held
        assert adapters.shelf.loads == loads + (kind != "embedding"), "and of two files only the one that changed"
    assert np.array_equal(second, paint_afresh(shop, folder)), "nothing that was made of the old is used again"
    assert not np.array_equal(first, second)


@pytest.mark.parametrize("kind", ["LoRA", "IP-adapter"])
@torch.inference_mode()
def test_samples_with_the_old_and_the_new_share_no_call(kind: str, folder: Path, tmp_path: Path) -> None:
    model = load_on_cpu(tiny_entry("tiny", folder))
    shop = Shop(kind, model, tmp_path)
    adapters = Adapters(shop.addons)

    def shape_of(seed: int) -> Any:
        shop.write(seed)
        with adapters.fitted(model, shop.painting, lambda: None) as fitted:
            return begin_samples(fitted, shop.painting)[0].call_shape

    old, new, again = (shape_of(seed) for seed in (1, 2, 1))
    assert old != new
    assert old == again


def weights_of(thing: Any) -> list[torch.Tensor]:
    if isinstance(thing, tuple):
        return [*thing[0].vectors]
    if hasattr(thing, "layers"):
        return [*thing.projection.parameters(), *(each.key for each in thing.layers)]
    return [*(thing.vae if hasattr(thing, "vae") else thing.model).parameters()]


@pytest.mark.parametrize("kind", ["VAE", "IP-adapter", "image encoder", "embedding"])
def test_what_is_in_use_stays_as_it_is_while_its_file_is_overwritten(
    kind: str, loaded: LoadedModel, tmp_path: Path
) -> None:
    shop = Shop(kind, loaded, tmp_path)
    load: Callable[..., Any] = {
        "VAE": functools.partial(load_vae, shop.path, device=CPU, dtype=torch.float32),
        "IP-adapter": functools.partial(load_weights, shop.path, device=CPU, dtype=torch.float32),
        "image encoder": functools.partial(load_image_encoder, shop.encoder, device=CPU, dtype=torch.float32),
        "embedding": functools.partial(load_inversions, [shop.embedding], [TEXT_WIDTH]),
    }[kind]
    before, thing = [each.clone() for each in weights_of(load())], load()
    place = shop.encoder if kind == "image encoder" else shop.path
    [file] = place.glob("*.safetensors") if place.is_dir() else [place]
    with file.open("r+b") as opened:
        opened.write(bytes(file.stat().st_size))
    assert all(torch.equal(one, other) for one, other in zip(before, weights_of(thing), strict=True))


# -- versions -------------------------------------------------------------------------------------


def test_a_version_tells_files_and_folders_as_they_were_from_what_they_have_become(tmp_path: Path) -> None:
    file, home = tmp_path / "a.safetensors", tmp_path / "vae"
    assert version_of(file) == version_of(home) == ()
    home.mkdir()
    seen = set()
    for place in (file, home / "config.json"):
        for text, time in (("one", 1), ("three", 1), ("three", 2)):
            place.write_text(text)
            os.utime(place, (time, time))
            seen.add((version_of(file), version_of(home)))
            assert version_of(place) == version_of(place)
    (home / "config.json").rename(home / "config.old")
    seen.add((version_of(file), version_of(home)))
    assert len(seen) == 7
    (home / "more").mkdir()
    assert (version_of(file), version_of(home)) in seen, "folders in a folder are not looked at"
