"""`inpaintd models` as an operator runs it, with a hub that is a local HTTP server."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from pytest_httpserver import HTTPServer
from werkzeug import Request, Response

from tests.painting import LIBRARY_WARNINGS
from tests.tiny_models import make_tiny_model
from worker.pulling import PullFailed, wanted_files

pytestmark = LIBRARY_WARNINGS

COMMIT = "0123456789abcdef0123456789abcdef01234567"
UNET_WEIGHTS = Path("unet") / "diffusion_pytorch_model.safetensors"
COMMAND = [sys.executable, "-c", "from worker.cli import models; models()"]


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.getbasetemp() / "tiny-models")


@pytest.fixture
def models_file(original: Path, tmp_path: Path) -> Path:
    path = tmp_path / "models.toml"
    path.write_text(
        f'[models.near]\nfolder = "{original}"\naliases = ["close-by"]\n\n[models.far]\nhub = "someone/something"\n'
    )
    return path


def run_models(models_file: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    inherited = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    variables = {
        "MODELS_FILE": str(models_file),
        "MODELS_DIR": str(models_file.parent / "pulled"),
        "HF_HOME": str(models_file.parent / "hub"),
        "HF_HUB_DISABLE_XET": "1",
        "COLUMNS": "200",
        "DEVICE": "cpu",
    }
    return subprocess.run(
        [*COMMAND, *arguments],
        env=inherited | variables | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def serve_hub(server: HTTPServer, folder: Path, extra: dict[str, bytes]) -> list[str]:
    """The hub's model_info and resolve routes for one repository; returns what is asked for, as it comes."""
    files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()} | extra
    asked: list[str] = []

    def answer(request: Request) -> Response:
        asked.append(request.path)
        name = request.path.split(f"/resolve/{COMMIT}/")[-1]
        headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{hashlib.sha256(files[name]).hexdigest()}"'}
        return Response(files[name], headers=headers, content_type="application/octet-stream")

    info = {"id": "someone/something", "sha": COMMIT, "siblings": [{"rfilename": name} for name in files]}
    for route in ("/api/models/someone/something", f"/api/models/someone/something/revision/{COMMIT}"):
        server.expect_request(route).respond_with_json(info)
    tree = [
        {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data, usedforsecurity=False).hexdigest()}
        for name, data in files.items()
    ]
    server.expect_request(f"/api/models/someone/something/tree/{COMMIT}").respond_with_json(tree)
    for name in files:
        server.expect_request(f"/someone/something/resolve/{COMMIT}/{name}").respond_with_handler(answer)
    return asked


def test_list_shows_every_model_and_whether_it_is_here(models_file: Path) -> None:
    run = run_models(models_file, "list", "--aliases")
    assert run.returncode == 0, run.stderr
    assert "doodle (default)" in run.stdout
    assert "near is also: close-by" in run.stdout
    assert "hub: someone/something" in run.stdout
    assert "it has not been pulled" in run.stdout


def test_check_says_what_a_model_is_and_paints_with_it(models_file: Path, original: Path) -> None:
    run = run_models(models_file, "check", "close-by")
    assert run.returncode == 0, run.stderr
    assert "near works: painted 64x64 on cpu" in run.stdout
    assert "near is a folder of Stable Diffusion 1 or 2, its UNet with 9 channels, predicting epsilon" in run.stdout
    assert hashlib.sha256((original / UNET_WEIGHTS).read_bytes()).hexdigest() in run.stdout


def test_check_says_why_a_model_does_not_work(models_file: Path, original: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(original, tmp_path / "broken")
    (broken / UNET_WEIGHTS).rename(broken / "unet" / "model.ckpt")
    models_file.write_text(f'[models.broken]\nfolder = "{broken}"\n')
    run = run_models(models_file, "check", "broken")
    assert run.returncode == 1
    assert "unet is there as a pickle only" in " ".join(run.stderr.split())


def test_pull_fetches_what_the_engine_loads_and_nothing_else(
    models_file: Path, original: Path, httpserver: HTTPServer
) -> None:
    extra = {
        "unet/diffusion_pytorch_model.bin": b"pickle",
        "unet/diffusion_pytorch_model.fp16.safetensors": b"smaller",
        "all-in-one.safetensors": b"the same again",
        "safety_checker/model.safetensors": b"not used",
        "run_me.py": b"raise SystemExit",
    }
    asked = serve_hub(httpserver, original, extra)
    run = run_models(models_file, "pull", "far", HF_ENDPOINT=httpserver.url_for("").rstrip("/"))
    assert run.returncode == 0, run.stderr
    assert "far is here: 5 MiB" in run.stdout
    assert "100%" in run.stderr, "a progress bar"
    assert not any(name in path for path in asked for name in extra)
    pulled = models_file.parent / "pulled" / "far"
    expected = {path.relative_to(original) for path in original.rglob("*") if path.is_file()}
    assert {
        path.relative_to(pulled) for path in pulled.rglob("*") if path.is_file() and ".cache" not in path.parts
    } == expected
    again = run_models(models_file, "check", "far")
    assert again.returncode == 0, again.stderr


def test_a_repository_is_added_by_the_names_of_its_files(
    models_file: Path, original: Path, httpserver: HTTPServer
) -> None:
    hub = {"HF_ENDPOINT": httpserver.url_for("").rstrip("/")}
    serve_hub(httpserver, original, {"text_encoder_2/model.safetensors": b"x", "text_encoder_2/config.json": b"{}"})
    added = run_models(models_file, "add", "someone/something", "--revision", COMMIT, **hub)
    assert added.returncode == 0, added.stderr
    assert "something is a repository of Stable Diffusion XL" in added.stdout
    assert "inpaintd models pull something" in added.stdout
    entry = f'[models.something]\nhub = "someone/something"\nrevision = "{COMMIT}"\nfamily = "sdxl"\n'
    assert models_file.read_text().endswith(f'hub = "someone/something"\n\n{entry}')
    offline = run_models(models_file, "add", "someone/else", HF_HUB_OFFLINE="1")
    assert (offline.returncode, "HF_HUB_OFFLINE is set" in offline.stderr) == (1, True)


@pytest.mark.parametrize(
    ("environment", "reason"),
    [
        ({"HF_ENDPOINT": "http://127.0.0.1:9"}, "The hub cannot be reached"),
        ({"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE is set"),
    ],
    ids=["no hub", "offline"],
)
def test_pull_without_a_hub_says_so(models_file: Path, environment: dict[str, str], reason: str) -> None:
    run = run_models(models_file, "pull", "far", **environment)
    assert run.returncode == 1
    assert reason in " ".join(run.stderr.split())
    assert "Traceback" not in run.stderr


def test_pull_of_an_unknown_repository_says_so(models_file: Path, httpserver: HTTPServer) -> None:
    headers = {"X-Error-Code": "RepoNotFound"}
    httpserver.expect_request("/api/models/someone/something").respond_with_data("", status=404, headers=headers)
    run = run_models(models_file, "pull", "far", HF_ENDPOINT=httpserver.url_for("").rstrip("/"))
    assert run.returncode == 1
    assert "no public model someone/something" in " ".join(run.stderr.split())


def test_pull_of_a_local_model_and_of_an_unknown_one_are_refused(models_file: Path) -> None:
    local = run_models(models_file, "pull", "near")
    assert (local.returncode, "nothing to pull" in local.stderr) == (1, True)
    unknown = run_models(models_file, "pull", "nowhere")
    assert (unknown.returncode, "There is no model nowhere" in unknown.stderr) == (1, True)


def test_a_repository_of_pickles_is_refused() -> None:
    names = ["model_index.json", "vae/model.safetensors", "unet/diffusion_pytorch_model.bin", "text_encoder/a.bin"]
    with pytest.raises(PullFailed, match="can run any program"):
        wanted_files(names)
    halves = [f"{part}/model.fp16.safetensors" for part in ("vae", "unet", "text_encoder")]
    assert wanted_files([*names, *halves]) == ["model_index.json", *halves]


def test_before_there_is_a_models_file_the_list_has_what_is_built_in(tmp_path: Path) -> None:
    done = run_models(tmp_path / "models.toml", "list", COLUMNS="80")
    assert done.returncode == 0, done.stderr
    assert "is not there yet" in done.stderr
    assert "doodle (default)" in done.stdout
    assert "is also" not in done.stdout


def test_the_names_there_are_include_a_safety_checker_that_is_configured(models_file: Path) -> None:
    assert "safety_checker" not in run_models(models_file, "check", "nothing").stderr
    models_file.write_text(models_file.read_text() + '\n[safety_checker]\nfolder = "checker"\n')
    done = run_models(models_file, "check", "nothing")
    assert done.stderr.split("There are:")[1].strip().removesuffix(".").endswith("safety_checker")
