"""Answer messages: a picture with its classification, or the sign that a call is alive."""

from __future__ import annotations

import uuid
from dataclasses import dataclass

from api.dialects.stability.proto import generation_pb2 as wire
from storage.job import InpaintJob

MILLISECONDS = 1000
PNG = "image/png"


@dataclass(frozen=True)
class Envelope:
    """What every answer of a call carries. `received`: seconds since the epoch."""

    request_id: str
    engine_id: str
    received: float

    def keep_alive(self, *, at: float) -> wire.Answer:
        return wire.Answer(
            answer_id=str(uuid.uuid4()),
            request_id=self.request_id,
            received=int(self.received * MILLISECONDS),
            created=int(at * MILLISECONDS),
            meta=wire.AnswerMeta(engine_id=self.engine_id),
        )

    def picture(self, job: InpaintJob, index: int, png: bytes, *, at: float) -> wire.Answer:
        """Picture `index` of the job, and one classification, without which some clients read no picture."""
        image = job.images[index]
        seed = image.seed
        answer = self.keep_alive(at=at)
        answer.answer_id = f"{job.job_id}-{index}"
        answer.artifacts.add(
            id=index,
            type=wire.ARTIFACT_IMAGE,
            mime=PNG,
            binary=png,
            index=index,
            # Clients keep only pictures with this reason; of one with FILTER they say that it was withheld.
            finish_reason=wire.FILTER if image.nsfw else wire.NULL,
            seed=seed,
            uuid=str(uuid.uuid5(uuid.UUID(job.image_id), str(index))),
            size=len(png),
        )
        answer.artifacts.add(
            id=index,
            type=wire.ARTIFACT_CLASSIFICATIONS,
            classifier=wire.ClassifierParameters(
                realized_action=wire.ACTION_OBFUSCATE if image.nsfw else wire.ACTION_PASSTHROUGH
            ),
            index=index,
            finish_reason=wire.NULL,
            seed=seed,
            uuid=str(uuid.uuid5(uuid.UUID(job.image_id), f"classification {index}")),
        )
        return answer
