"""fal's four hosts: known by a name in the Host header, or named by a proxied request; both lead to the prefixes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING
from urllib.parse import SplitResult, unquote, urlsplit

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

PROXY_PATH = "/api/fal/proxy"
TARGET_HEADER = "HTTP_X_FAL_TARGET_URL"
HOST_MARK = "inpaintd.fal_host"
PREFIXES = ("queue", "run", "rest", "cdn")
# The hosts that the clients have built in.
VENDOR_HOSTS: Mapping[str, str] = {
    "queue.fal.run": "queue",
    "fal.run": "run",
    "rest.fal.ai": "rest",
    "rest.alpha.fal.ai": "rest",
    "v3.fal.media": "cdn",
}
PROXIED_METHODS = ("GET", "POST", "PUT")


class Gateway:
    """WSGI middleware. `hosts` maps host names (with a port or without) to prefixes.

    A path that this service has itself stays what it is under each of those hosts: pictures, for example.
    """

    def __init__(
        self, app: Callable[..., Iterable[bytes]], hosts: Mapping[str, str], *, own_segments: Iterable[str]
    ) -> None:
        self._app: WSGIApplication = app
        self._hosts = hosts
        self._own_segments = frozenset(own_segments)

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        path = environ.get("PATH_INFO", "")
        if path.rstrip("/") == PROXY_PATH and environ.get("REQUEST_METHOD") in PROXIED_METHODS:
            environ = self._proxied(environ)
        elif (prefix := self._prefix_of(environ.get("HTTP_HOST", ""))) and not self._is_own(path):
            environ = {**environ, "PATH_INFO": f"/{prefix}{path}", HOST_MARK: prefix}
        return self._app(environ, start_response)

    def _proxied(self, environ: WSGIEnvironment) -> WSGIEnvironment:
        """The same request at its target; unchanged where the target is none of ours."""
        target = _split(environ.get(TARGET_HEADER, ""))
        path = None if target is None else self._target_path(target, environ.get("HTTP_HOST", ""))
        if target is None or path is None:
            return environ
        return {**environ, "PATH_INFO": path, "QUERY_STRING": target.query}

    def _target_path(self, target: SplitResult, own_host: str) -> str | None:
        path = unquote(target.path, encoding="latin-1")  # PATH_INFO is bytes spelt in Latin-1
        prefix = VENDOR_HOSTS.get(target.netloc.lower()) or self._prefix_of(target.netloc)
        if prefix is not None and not (target.netloc.lower() not in VENDOR_HOSTS and self._is_own(path)):
            path = f"/{prefix}{path}"
        elif target.netloc.lower() != own_host.lower():
            return None
        return path if path.split("/")[1] in PREFIXES else None

    def _prefix_of(self, host: str) -> str | None:
        host = host.lower()
        return self._hosts.get(host) or self._hosts.get(host.rpartition(":")[0])

    def _is_own(self, path: str) -> bool:
        segment = path.lstrip("/").split("/")[0]
        return not segment or segment in self._own_segments


def _split(url: str) -> SplitResult | None:
    try:
        parts = urlsplit(url)
    except ValueError:
        return None
    is_plain = parts.scheme in ("http", "https") and parts.path.startswith("/") and "@" not in parts.netloc
    return parts if is_plain else None
