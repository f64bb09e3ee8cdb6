"""`python -m tests.dispatcher_process`: the dispatcher as it is, knowing the tests' plain dialect besides."""

from __future__ import annotations

import sys

from api.dispatcher import main
from tests.webhook_scenes import plain_dialect

sys.modules["api.dialects.plain"] = plain_dialect()
main()
