"""Run by torchrun: `worker.builtin.train`, of a model so small that it learns nothing."""

from __future__ import annotations

from tests.unit.test_doodle_training import TINY
from worker.builtin.train.__main__ import main

if __name__ == "__main__":
    main(recipe=TINY)
