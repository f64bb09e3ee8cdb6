"""Jobs for tests: valid, with whatever the test is about changed."""

from __future__ import annotations

import uuid
from typing import Any

from storage.job import InpaintJob


def a_job(**changes: Any) -> InpaintJob:
    values: dict[str, Any] = {
        "job_id": str(uuid.uuid4()),
        "image_id": str(uuid.uuid4()),
        "key_id": "key-a",
        "dialect": "modelslab",
        "model": "doodle",
        "prompt": "a red circle",
        "negative_prompt": "",
        "init_image": "object:inputs/init",
        "mask_image": "object:inputs/mask",
        "width": 128,
        "height": 128,
        "num_images": 1,
        "num_inference_steps": 20,
        "guidance_scale": 4.0,
        "strength": 1.0,
        "seed": 7,
        "scheduler": "DDIMScheduler",
        "submitted_at": 1_700_000_000.0,
    }
    return InpaintJob(**(values | changes))
