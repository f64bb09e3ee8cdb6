"""Run beside stability-sdk in a process of its own: does with the client what stdin asks, and tells how it went.

In: {"do": a function's name, "host", "key", and its arguments; pictures as base64}. Out: JSON.
"""

from __future__ import annotations

import base64
import io
import json
import sys
import warnings
from typing import Any

warnings.simplefilter("ignore")

import grpc  # noqa: E402  # the warnings of what is imported here are not ours
from PIL import Image  # noqa: E402
from stability_sdk import api, client, utils  # type: ignore[import-not-found]  # noqa: E402  # in this process' path alone
from stability_sdk.interfaces.gooseai.generation import generation_pb2 as wire  # type: ignore[import-not-found]  # noqa: E402


def image(data: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(data)))


def prompts(asked: Any) -> Any:
    if isinstance(asked, str):
        return asked
    return [wire.Prompt(text=words, parameters=wire.PromptParameters(weight=weight)) for words, weight in asked]


def generate(
    host: str, key: str, *, init: str, mask: str, prompt: Any, engine: str | None = None, **options: Any
) -> Any:
    named = {"engine": engine} if engine else {}
    inference = client.StabilityInference(host=host, key=key, verbose=False, **named)
    if "sampler" in options:
        options["sampler"] = utils.sampler_from_string(options["sampler"])
    told: dict[str, Any] = {"keep_alives": 0, "pictures": [], "classified": 0}
    for answer in inference.generate(prompt=prompts(prompt), init_image=image(init), mask_image=image(mask), **options):
        kinds = [artifact.type for artifact in answer.artifacts]
        told["keep_alives"] += not kinds
        told["classified"] += kinds.count(wire.ARTIFACT_CLASSIFICATIONS)
        assert kinds.count(wire.ARTIFACT_IMAGE) <= 1
        for path, artifact in client.process_artifacts_from_answers(
            "p", "p", iter([answer]), write=False, verbose=False, filter_types=["image/png"]
        ):
            if artifact.type == wire.ARTIFACT_IMAGE:
                told["pictures"].append(
                    {
                        "path": path,
                        "seed": artifact.seed,
                        "finish_reason": artifact.finish_reason,
                        "png": base64.b64encode(artifact.binary).decode(),
                    }
                )
    return told


def inpaint(host: str, key: str, *, init: str, mask: str, prompt: str, **options: Any) -> Any:
    context = api.Context(host, key)
    results = context.inpaint(image(init), image(mask), prompts=[prompt], weights=[1.0], **options)
    made = []
    for picture in results[wire.ARTIFACT_IMAGE]:
        buffer = io.BytesIO()
        picture.save(buffer, "PNG")
        made.append(base64.b64encode(buffer.getvalue()).decode())
    return {"pictures": made, "kinds": sorted(results)}


def user_info(host: str, key: str) -> Any:
    return api.Context(host, key).get_user_info()


def main() -> None:
    asked = json.load(sys.stdin)
    try:
        told = {"returned": globals()[asked.pop("do")](**asked)}
    except grpc.RpcError as error:
        told = {"raised": type(error).__name__, "code": error.code().name, "details": error.details()}
    except Exception as error:  # noqa: BLE001  # whatever the client raises is what the test wants to see
        told = {"raised": type(error).__name__, "details": str(error) or repr(vars(error))}
    json.dump(told, sys.stdout)


if __name__ == "__main__":
    main()
