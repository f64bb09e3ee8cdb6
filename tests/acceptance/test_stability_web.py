"""gRPC-Web clients of npm against the whole service: three transports, both encodings, the documented example."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import grpc_tools
import numpy as np
import pytest

from tests.clients_of_others import node_packages
from tests.service import SOURCE_DIR, Service, service
from tests.stability_scene import assert_red_in_the_black_part_only, encoded, mask, picture, pixels

__all__ = ["service"]

PACKAGES = {
    "stability-client": "1.9.0",
    "@improbable-eng/grpc-web": "0.15.0",
    "@improbable-eng/grpc-web-node-http-transport": "0.15.0",
    "@protobuf-ts/grpcweb-transport": "2.11.1",
    "@protobuf-ts/plugin": "2.11.1",
    "@protobuf-ts/runtime": "2.11.1",
    "@protobuf-ts/runtime-rpc": "2.11.1",
    "google-protobuf": "3.21.4",
    "tsx": "4.20.6",
}
DRIVERS = Path(__file__).parents[1] / "drivers"
PROTOS = Path("api/dialects/stability/proto")
RED = "a red circle on a white background"
ENGINE = "stable-diffusion-xl-beta-v2-2-2"
CALL_SECONDS = 60


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the packages, and TypeScript messages compiled from our .proto files."""
    packages = node_packages("grpc-web", PACKAGES)
    folder = tmp_path_factory.mktemp("node")
    (folder / "node_modules").symlink_to(packages / "node_modules")
    (folder / "package.json").write_text("{}")
    generated = folder / "generation"
    generated.mkdir()
    command = [sys.executable, "-m", "grpc_tools.protoc", f"--proto_path={SOURCE_DIR}"]
    command += [f"--proto_path={Path(grpc_tools.__file__).parent / '_proto'}", f"--ts_out={generated}"]
    command += [f"--plugin=protoc-gen-ts={packages}/node_modules/@protobuf-ts/plugin/bin/protoc-gen-ts"]
    command += [str(PROTOS / "generation.proto"), str(PROTOS / "tensors.proto")]
    subprocess.run(command, check=True, cwd=SOURCE_DIR)
    (generated / "generation_pb.ts").write_text(f'export * from "./{PROTOS}/generation";\n')
    return folder


def run(project: Path, *command: str, asked: Any = None, **environment: str) -> str:
    done = subprocess.run(
        command,
        cwd=project,
        input=json.dumps(asked),
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=CALL_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def through_protobuf_ts(project: Path, service: Service, **asked: Any) -> Any:
    shutil.copy(DRIVERS / "protobuf_ts.ts", project)
    values = {"host": service.url, "key": service.key, "engine": ENGINE, "prompt": RED, "seed": 7, "format": "binary"}
    pictures = {"init": encoded(picture()), "mask": encoded(mask())}
    return json.loads(run(project, "node_modules/.bin/tsx", "protobuf_ts.ts", asked=values | pictures | asked))


def through_stability_client(project: Path, service: Service, **asked: Any) -> Any:
    values = {"host": service.url, "apiKey": service.key, "engine": ENGINE, "prompt": RED, "seed": 7, "steps": 20}
    pictures = {"init": encoded(picture()), "mask": encoded(mask()), "width": 128, "height": 128}
    return json.loads(run(project, "node", str(DRIVERS / "stability_client.cjs"), asked=values | pictures | asked))


@pytest.mark.parametrize("format", ["text", "binary"])
def test_both_encodings_stream_what_is_red_in_the_black_part_only(project: Path, service: Service, format: str) -> None:
    told = through_protobuf_ts(project, service, format=format, samples=2)
    assert (told["code"], told["message"]) == ("OK", "")
    assert [each["seed"] for each in told["pictures"]] == [7, 8]
    assert_red_in_the_black_part_only(pixels(told["pictures"][0]["png"]))


def test_a_chain_into_a_projects_assets_gives_its_pictures(project: Path, service: Service) -> None:
    # This client's masks are inverted.
    negative = encoded(mask().point(lambda level: 255 - level))
    meta = {"stability-client-id": "StableStudio"}
    told = through_protobuf_ts(project, service, chain=True, format="text", mask=negative, meta=meta)
    assert told["code"] == "OK", told["message"]
    assert_red_in_the_black_part_only(pixels(told["pictures"][0]["png"]))


def test_errors_arrive_with_their_codes_and_words(project: Path, service: Service) -> None:
    unknown = through_protobuf_ts(project, service, engine="nöpe")
    assert (unknown["code"], unknown["message"]) == ("NOT_FOUND", "The specified engine (ID nöpe) was not found.")
    keyless = through_protobuf_ts(project, service, key="")
    assert keyless["code"] == "UNAUTHENTICATED"


def test_the_published_typescript_client_gets_its_pictures(project: Path, service: Service) -> None:
    told = through_stability_client(project, service, samples=2)
    assert told["isOk"], told
    assert [each["seed"] for each in told["pictures"]] == [7, 8]
    assert {each["mimeType"] for each in told["pictures"]} == {"image/png"}
    assert_red_in_the_black_part_only(pixels(told["pictures"][0]["png"]))
    refused = through_stability_client(project, service, apiKey="wrong")
    assert (refused["isOk"], refused["message"]) == (False, "the API key is not valid")


def test_the_documented_example_writes_its_picture_with_only_the_host_changed(project: Path, service: Service) -> None:
    document = (SOURCE_DIR / "deploy" / "TYPESCRIPT.md").read_text()
    (example,) = re.findall(r"```typescript\n(import fs .*?)```", document, re.DOTALL)
    files = DRIVERS / "typescript_example"
    shutil.copy(files / "helpers.ts", project)
    (project / "example.ts").write_text((files / "setup.ts").read_text() + example)
    picture().resize((512, 512)).save(project / "init_image.png")
    mask().resize((512, 512)).save(project / "mask_image.png")
    run(project, "node_modules/.bin/tsx", "example.ts", API_KEY=service.key, API_HOST=service.url)
    made = pixels(base64.b64encode((project / "image-1823948.png").read_bytes()).decode())
    white = np.asarray(mask().resize((512, 512))) == 255
    assert made.shape == (512, 512, 3)
    before = np.asarray(picture().resize((512, 512)))
    assert np.array_equal(made[white], before[white])
    assert not np.array_equal(made[~white], before[~white])
