"""Checkpoints of true size, without a config folder: every weight must come to its place. Needs no GPU, but 16 GB.

python -m tests.gpu.single_files [sd1 sd2 sdxl]
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from storage.model_catalog import SingleFile
from tests.single_file import original_layout
from tests.tiny_models import tiny_entry
from tests.unit.test_checkpoints import parts_of
from worker.loading import LoadedModel, load_model

CHANNELS = {"sd1": 4, "sd2": 9, "sdxl": 9}
FAMILIES = {"sd1": "sd", "sd2": "sd", "sdxl": "sdxl"}


def marked_parts(layout: str) -> dict[str, Any]:
    """The parts with a number of its own in each weight."""
    parts = parts_of(layout, CHANNELS[layout])
    for part in parts.values():
        part.half().to_empty(device="cpu")
        for index, (_, weights) in enumerate(sorted(part.named_parameters())):
            weights.data.fill_(index / 4096)
            weights.data.view(-1)[-1] = -1
    return parts


def check(layout: str, folder: Path) -> str:
    """Write a checkpoint, load it as a worker does, compare. Answers a line for people."""
    parts = marked_parts(layout)
    expected = {
        name: {key: (each.shape, each.view(-1)[0].item()) for key, each in part.named_parameters()}
        for name, part in parts.items()
    }
    checkpoint = original_layout({name: part.state_dict() for name, part in parts.items()}, layout=layout)
    path = folder / f"{layout}.safetensors"
    save_file({name: each.contiguous() for name, each in checkpoint.items()}, path)
    del parts, checkpoint
    entry = dataclasses.replace(tiny_entry(layout, SingleFile(path)), family=FAMILIES[layout])
    started = time.monotonic()
    model = load_model(entry, device=torch.device("cpu"), dtype=torch.float16, prompt_cache_entries=1)
    seconds = time.monotonic() - started
    for name, part in loaded_parts(model).items():
        found = {key: (each.shape, each.view(-1)[0].item()) for key, each in part.named_parameters()}
        assert found.keys() == expected[name].keys(), f"{layout}: {name} has other weights"
        wrong = [
            key
            for key, (shape, value) in found.items()
            if (shape, round(value, 3)) != (expected[name][key][0], round(expected[name][key][1], 3))
        ]
        assert not wrong, f"{layout}: {name} has its weights in other places: {wrong[:3]}"
    size = path.stat().st_size / 2**30
    path.unlink()
    return f"{layout}: {sum(map(len, expected.values()))} tensors, {size:.1f} GiB, loaded in {seconds:.1f} s"


def loaded_parts(model: LoadedModel) -> dict[str, Any]:
    names = ("text_encoder", "text_encoder_2")
    towers = {name: tower.encoder for name, tower in zip(names, model.prompts.towers, strict=False)}
    return {"unet": model.unet, "vae": model.vae, **towers}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("layouts", nargs="*", default=list(CHANNELS))
    with tempfile.TemporaryDirectory() as temporary:
        for chosen in parser.parse_args().layouts:
            print(check(chosen, Path(temporary)), flush=True)
