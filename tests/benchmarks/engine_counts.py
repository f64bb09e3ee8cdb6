"""(e-d) What is computed besides the steps: graphs built, texts and pictures encoded for each job."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.benchmarks.figures import Findings, Row
from tests.painting import load_on_cpu, load_stock, make_painting, paint_stock, paint_together, running_engine
from tests.tiny_models import make_tiny_model, tiny_entry
from worker.graphs import GraphedUNet

NUM_JOBS = 16
IMAGES = 2


def counts(folder: Path) -> Findings:
    """One client tries prompts and seeds on one picture: 16 jobs of two images, four prompts."""
    source = make_tiny_model(folder)
    entry = tiny_entry("tiny", source)
    paintings = [
        make_painting(
            job_id=f"job-{index}",
            prompt=f"a red cat {index % 4}",
            seeds=tuple(range(IMAGES * index, IMAGES * (index + 1))),
            strength=0.8,
        )
        for index in range(NUM_JOBS)
    ]
    model = load_on_cpu(entry)
    with running_engine(entry, load=lambda _entry: model) as engine:
        paint_together(engine, paintings)
    stock = load_stock(source)
    pristine = stock.scheduler.config
    calls: Counter[str] = Counter()
    stock.text_encoder.forward = _counted(calls, "texts", stock.text_encoder.forward)
    stock.vae.encode = _counted(calls, "pictures", stock.vae.encode)
    for painting in paintings:
        paint_stock(stock, pristine, painting)
    built = model.unet.graphs_built if isinstance(model.unet, GraphedUNet) else 0
    rows = [
        _row("texts encoded for a job", model.prompts.encodes, calls["texts"]),
        _row("pictures encoded for a job", model.encodings.encodes, calls["pictures"]),
        Row(
            part="e-d", measured="graphs built (there are none on the CPU)", figure=str(built), values={"graphs": built}
        ),
    ]
    return Findings(
        rows=rows,
        remarks=[
            f"(e-d) {NUM_JOBS} jobs of {IMAGES} images on one picture, four prompts, strength 0.8; the control makes "
            "one image a job."
        ],
    )


def _counted(calls: Counter[str], name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    def counted(*args: Any, **kwargs: Any) -> Any:
        calls[name] += 1
        return function(*args, **kwargs)

    return counted


def _row(measured: str, ours: int, stock: int) -> Row:
    return Row(
        part="e-d",
        measured=measured,
        figure=f"{ours / NUM_JOBS:.2f}",
        control=f"{stock / NUM_JOBS:.2f} (a loop over the pipeline)",
        ratio=ours / stock,
        values={"encodes_per_job": ours / NUM_JOBS},
    )
