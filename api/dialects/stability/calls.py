"""A call as both transports bring it: who calls, until when, and what happens once the caller is gone."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping

from api.auth import Doorkeeper, presented_key
from api.dialects.stability.errors import Code, WireStatus
from api.errors import MissingApiKey
from api.keys import ApiKey, KeyScope

# Whose jobs are those of callers without a key, where such are let in. No key has such an id.
KEYLESS = ApiKey(key_id="keyless", name="without a key", scope=KeyScope.USER, webhook_secret="", created_at=0.0)
CLIENT_ID = "stability-client-id"


class Call:
    """`metadata` by lower-case name; `deadline` is a time.monotonic()."""

    def __init__(self, metadata: Mapping[str, str], *, needs_key: bool, deadline: float | None = None) -> None:
        self._metadata = metadata
        self._needs_key = needs_key
        self._deadline = deadline
        self._lock = threading.Lock()
        self._ended = False
        self._at_end: list[Callable[[], None]] = []
        self.key_id: str | None = None

    @property
    def client(self) -> str:
        return self._metadata.get(CLIENT_ID, "")

    def admit(self, doorkeeper: Doorkeeper) -> ApiKey:
        """The caller's key. Raises MissingApiKey, InvalidApiKey, StorageUnavailable."""
        plaintext = presented_key({}, {"Authorization": self._metadata.get("authorization", "")})
        if plaintext is None and self._needs_key:
            raise MissingApiKey
        api_key = KEYLESS if plaintext is None else doorkeeper.admit(plaintext)
        self.key_id = api_key.key_id
        return api_key

    def seconds_left(self, at_most: float) -> float:
        """Until the deadline, if that comes first."""
        return at_most if self._deadline is None else max(0.0, min(at_most, self._deadline - time.monotonic()))

    def check(self) -> None:
        """Raises WireStatus when nobody waits for an answer any more."""
        if self._ended:
            raise WireStatus(Code.CANCELLED, "The call was cancelled.")
        if self._deadline is not None and time.monotonic() >= self._deadline:
            raise WireStatus(Code.DEADLINE_EXCEEDED, "Deadline Exceeded")

    def at_end(self, action: Callable[[], None]) -> None:
        """Do this when the call is over, however it ends; at once when it is over already."""
        with self._lock:
            if not self._ended:
                self._at_end.append(action)
                return
        action()

    def end(self) -> None:
        """From any thread, any number of times."""
        with self._lock:
            actions, self._at_end = self._at_end, []
            self._ended = True
        for action in actions:
            action()
