"""The worker as it is shipped: `python -m worker`, the built-in model, one job."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from storage.job import JobStatus, SafetyAction
from tests.tiny_checkers import ALWAYS, make_tiny_checker
from tests.workshops import Scene

ROOT = Path(__file__).parents[2]


def test_the_built_in_model_repaints_what_is_masked_and_nothing_else_and_what_is_to_be_checked_is(
    redis_url: str, tmp_path: Path
) -> None:
    scene = Scene(redis_url, tmp_path, lease_seconds=5)
    picture = np.full((128, 128, 3), (90, 160, 230), np.uint8)
    mask = np.zeros((128, 128), np.uint8)
    mask[32:96, 32:96] = 255
    job = scene.submit(
        picture=picture, mask=mask, prompt="a red circle", num_inference_steps=8, num_images=2, width=150, height=120
    )
    checked = scene.submit(num_inference_steps=2, safety_checker=SafetyAction.BLACK)
    make_tiny_checker(tmp_path / "checker", threshold=ALWAYS)
    (tmp_path / "models.toml").write_text('[safety_checker]\nfolder = "checker"\n')
    environment = os.environ | {
        "MODELS_FILE": str(tmp_path / "models.toml"),
        "REDIS_URL": redis_url,
        "IMAGE_DIR": str(scene.storage.image_dir),
        "WORKER_THREADS": "2",
        "LEASE_SECONDS": "5",
    }
    with (tmp_path / "log").open("w") as log:
        worker = subprocess.Popen([sys.executable, "-m", "worker"], cwd=ROOT, env=environment, stderr=log)
        try:
            until = time.monotonic() + 60
            while not (scene.job(job).status.is_final and scene.job(checked).status.is_final):
                assert worker.poll() is None and time.monotonic() < until, (tmp_path / "log").read_text()
                time.sleep(0.1)
            worker.send_signal(signal.SIGTERM)
            assert worker.wait(15) == 0
        finally:
            worker.kill()
            worker.wait()
    done = scene.job(job)
    assert done.status is JobStatus.SUCCEEDED, (done.failure, (tmp_path / "log").read_text())
    assert done.notes["worked_size"] == [320, 256]
    assert done.notes["unet_evaluations"] == 16
    kept = np.ones((120, 150), bool)
    kept[30:90, 37:113] = False
    results = [scene.result(job, index) for index in (0, 1)]
    for result in results:
        assert result.shape == (120, 150, 3)
        assert (result[kept] == picture[0, 0]).all()
        inside = result[40:80, 50:100].reshape(-1, 3).astype(int)
        assert np.abs(inside - picture[0, 0]).max() > 60
    assert not np.array_equal(*results)
    assert scene.job(checked).nsfw, scene.job(checked).failure
    assert not scene.result(checked).any()
    assert "Traceback" not in (tmp_path / "log").read_text()
