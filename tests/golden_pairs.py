"""Golden pairs of the dialects: a body as a client sent it, and every answer it gets, as JSON files.

`python -m tests.golden_pairs` writes the answers anew from the code; read the difference before keeping it.
"""

from __future__ import annotations

import dataclasses
import importlib
import itertools
import json
from pathlib import Path
from types import ModuleType
from typing import Any

from api.dialects.family import Circumstances
from api.fields import fold
from storage.addons import Addons
from storage.job import Failure, InpaintJob, JobStatus, ResultImage
from storage.model_catalog import Folder, ModelCatalog, ModelEntry

GOLDEN_DIR = Path(__file__).parent / "golden"
MOMENT = 1_800_000_000.0
JOB_FACTS = (
    *("dialect", "model", "prompt", "negative_prompt", "width", "height", "num_images", "num_inference_steps"),
    *("guidance_scale", "strength", "seed", "scheduler", "use_karras_sigmas", "webhook_url", "track_id"),
    *("temporary", "mask_paints", "safety_checker", "wire"),
)

PHOTO = ModelEntry(
    id="photo",
    aliases=("lazymixv4-inpaint",),
    name="Photo",
    description="For photographs.",
    family="sd",
    source=Folder(Path("photo")),
    native_size=512,
    min_size=256,
    max_size=1024,
    num_inference_steps=30,
    guidance_scale=7.5,
    scheduler="EulerDiscreteScheduler",
    prompt_suffix="sharp focus, 8k",
    negative_prompt="blurry, deformed",
)
DRAWN = dataclasses.replace(
    PHOTO, id="drawn", aliases=(), name="Drawn", scheduler="DDIMScheduler", prompt_suffix="", negative_prompt=""
)
CATALOG = ModelCatalog(entries=(PHOTO, DRAWN), default=PHOTO, addons=Addons(safety_checker=Path("checker")))


def golden_files() -> list[Path]:
    return sorted(GOLDEN_DIR.glob("*/*.json"))


def circumstances(**changes: Any) -> Circumstances:
    """Everything that chance and clocks would decide, decided."""
    numbers = itertools.count(1)
    values: dict[str, Any] = {
        "key_id": "key-a",
        "base_url": "https://pictures.example",
        "catalog": CATALOG,
        "max_steps": 51,
        "max_prompt_chars": 1000,
        "now": MOMENT,
        "random_seed": lambda: 3163825381,
        "new_id": lambda: f"00000000-0000-4000-8000-{next(numbers):012d}",
    }
    return Circumstances(**(values | changes))


def dialect_of(path: Path) -> ModuleType:
    return importlib.import_module(f"api.dialects.{path.parent.name}")


def parsed(dialect: ModuleType, variant_name: str, body: dict[str, Any]) -> InpaintJob:
    variant = getattr(dialect, variant_name)
    job: InpaintJob = dialect.parse(fold(body), variant, circumstances())
    shown = {"init_image": job.init_image, "mask_image": job.mask_image}
    return dataclasses.replace(job, number=134686749, wire={**job.wire, **shown})


def answers(dialect: ModuleType, job: InpaintJob) -> dict[str, Any]:
    """Every answer about this job, from submit to webhook."""
    claimed = job.claimed(at=MOMENT + 1)
    images = tuple(
        ResultImage(key=f"results/{k}.png", seed=job.seed_of(k), width=512, height=512, size_bytes=9)
        for k in range(job.num_images)
    )
    succeeded = claimed.succeeded(images, at=MOMENT + 4, notes={"seconds": 1.9110066890716553, "mask_empty": True})
    failed = claimed.failed(Failure(code="input_unreachable", message="-", field="init_image"), at=MOMENT + 2)
    return {
        "processing": dialect.render(job, eta=10.5),
        "success": dialect.render(succeeded, eta=0.0, webhook_status="queued" if job.webhook_url else ""),
        "error": dialect.render(failed, eta=0.0),
        "fetch_processing": dialect.render_fetch(claimed, eta=2.5),
        "fetch_success": dialect.render_fetch(
            succeeded, eta=0.0, webhook_status="delivered" if job.webhook_url else ""
        ),
        "fetch_failed": dialect.render_fetch(failed, eta=0.0),
        "webhook_success": dict(dialect.render_webhook(succeeded).body),
        "webhook_failed": dict(dialect.render_webhook(failed).body),
    }


def job_facts(job: InpaintJob) -> dict[str, Any]:
    assert job.status is JobStatus.QUEUED
    record = job.to_record()
    return {name: record[name] for name in JOB_FACTS}


def write_answers() -> None:
    for path in golden_files():
        pair = json.loads(path.read_text())
        dialect = dialect_of(path)
        job = parsed(dialect, pair["variant"], pair["body"])
        pair |= {"job": job_facts(job), "answers": answers(dialect, job)}
        path.write_text(json.dumps(pair, indent=2) + "\n")


if __name__ == "__main__":
    write_answers()
