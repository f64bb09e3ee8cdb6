"""A painting on its way through the engine: what is known of it, and how it ends."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future
from dataclasses import dataclass, field
from queue import SimpleQueue

import numpy as np
from numpy.typing import NDArray

from worker.errors import Cancelled, JobFailed, TimedOut, WorkerUnfit
from worker.loading import LoadedModel
from worker.preparing import Canvas
from worker.previews import Preview
from worker.sample import Painting, Sample

# Of a sample's latents: its own, the noise, the picture's, the masked picture's, the prediction, and up to
# five that a multistep scheduler remembers; each four channels.
LATENTS_HELD = 12
FLOAT_BYTES = 4
PICTURE_CHANNELS = 3


@dataclass(eq=False)
class Run:
    """The engine's thread writes it; `done` says that it is over."""

    painting: Painting
    model: LoadedModel | None = None
    canvas: Canvas | None = None
    samples: list[Sample] = field(default_factory=list)
    pictures: dict[int, NDArray[np.uint8]] = field(default_factory=dict)
    preview: Future[Preview | None] | None = None
    """Somebody waits for it; filled at the next step."""
    failure: JobFailed | WorkerUnfit | None = None
    finished: SimpleQueue[int | None] = field(default_factory=SimpleQueue)
    """The index of each picture as it is there; None: there will be no more."""
    cancelled: bool = False
    done: threading.Event = field(default_factory=threading.Event)

    def check(self) -> None:
        """Raises what ended the run, or must end it now."""
        if self.failure is not None:
            raise self.failure
        if self.cancelled:
            raise Cancelled
        if self.painting.deadline is not None and time.monotonic() > self.painting.deadline:
            raise TimedOut

    def end(self, failure: JobFailed | WorkerUnfit | None = None) -> None:
        self.failure = self.failure or failure
        self.samples = []
        # In this order: whoever asks for a preview after this sees that it is over.
        self.done.set()
        self.finished.put(None)
        self.show(None)

    def show(self, preview: Preview | None) -> None:
        """Answer whoever waits for a preview."""
        waiting, self.preview = self.preview, None
        # It may have been asked for again while it was answered.
        if waiting is not None and not waiting.done():
            waiting.set_result(preview)

    @property
    def progress(self) -> tuple[int, int]:
        """UNet evaluations done and to be done, of the sample that is furthest behind."""
        samples = list(self.samples)
        if not samples:
            total = self.painting.num_evaluations
            return (total if self.pictures else 0), total
        return min(sample.index for sample in samples), len(samples[0].timesteps)

    @property
    def size_bytes(self) -> int:
        """What the run holds in memory while it is in flight, its pictures included; calls not counted."""
        height, width = (int(length) for length in self.painting.mask.shape)
        picture_bytes = height * width * PICTURE_CHANNELS
        canvas_bytes = 2 * FLOAT_BYTES * picture_bytes
        if self.model is None:
            return canvas_bytes
        factor = self.model.latent_factor
        latent_bytes: int = (
            (height // factor) * (width // factor) * self.model.latent_channels * self.model.dtype.itemsize
        )
        return canvas_bytes + len(self.painting.seeds) * (LATENTS_HELD * latent_bytes + picture_bytes)
