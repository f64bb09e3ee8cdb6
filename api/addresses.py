"""Under which addresses clients know this service: what our links start with, and which links are ours."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_address
from typing import TYPE_CHECKING
from urllib.parse import SplitResult, urlsplit

from flask import Request
from werkzeug.middleware.proxy_fix import ProxyFix

from storage.job import InpaintJob

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

DEFAULT_PORTS = {"http": 80, "https": 443}
UUID = r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
PICTURE_PATH = re.compile(rf"/images/(?:temp/)?(?P<image_id>{UUID})-(?P<index>\d{{1,3}})\.(?:png|base64)", re.ASCII)
UPLOAD_PATH = re.compile(rf"/uploads/(?P<upload_id>{UUID})", re.ASCII)


@dataclass(frozen=True)
class OwnPicture:
    """A link of ours, to picture `index` of a job."""

    image_id: str
    index: int


@dataclass(frozen=True)
class OwnUpload:
    """A link of ours, to a picture that a client has sent."""

    upload_id: str


@dataclass(frozen=True)
class OwnUnknown:
    """A link of ours, to nothing that can be a picture."""


def base_url(request: Request, public_url: str | None) -> str:
    """What links of this service start with, without a slash at the end."""
    return public_url or request.root_url.rstrip("/")


def listener_urls(request: Request, ports: Sequence[int]) -> list[str]:
    """Where this service itself listens, as its own machine or this caller may call it.

    The scheme of these does not count: whichever port it is, what leads there is ours.
    """
    own = request.environ.get("SERVER_PORT", "")
    hosts = {"127.0.0.1", "localhost", "[::1]"}
    urls = [f"http://{host}:{port}" for host in sorted(hosts) for port in (own, *ports)]
    asked = _split(request.root_url)
    if asked is not None and asked.hostname:
        host = f"[{asked.hostname}]" if ":" in asked.hostname else asked.hostname
        urls += [f"http://{host}:{port}" for port in ports]
    return urls


def picture_links(job: InpaintJob, base: str, *, base64_text: bool) -> list[str]:
    """The final links of all pictures of a job, known before there is one."""
    folder = "images/temp" if job.temporary else "images"
    ending = "base64" if base64_text else "png"
    return [f"{base}/{folder}/{job.image_id}-{index}.{ending}" for index in range(job.num_images)]


def upload_link(upload_id: str, base: str) -> str:
    return f"{base}/uploads/{upload_id}"


def own_link(url: str, bases: Iterable[str], hosts: Sequence[str]) -> OwnPicture | OwnUpload | OwnUnknown | None:
    """What a link of ours leads to; None for a link to somebody else.

    `bases` are base URLs of this service; `hosts` further hosts, which count with any port unless they
    name one.
    """
    parts = _split(url)
    if parts is None or not parts.hostname:
        return None
    place = _host_and_port(parts)
    ours = {_host_and_port(base) for each in bases if (base := _split(each)) is not None}
    if place not in ours and parts.hostname not in hosts and f"{place[0]}:{place[1]}" not in hosts:
        return None
    if picture := re.search(PICTURE_PATH.pattern + r"\Z", parts.path, re.ASCII):
        return OwnPicture(picture["image_id"], int(picture["index"]))
    if upload := re.search(UPLOAD_PATH.pattern + r"\Z", parts.path, re.ASCII):
        return OwnUpload(upload["upload_id"])
    return OwnUnknown()


def _split(url: str) -> SplitResult | None:
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        return None
    return parts if parts.scheme in DEFAULT_PORTS else None


def _host_and_port(parts: SplitResult) -> tuple[str, int]:
    return parts.hostname or "", parts.port or DEFAULT_PORTS[parts.scheme]


class ForwardedByTrusted:
    """WSGI middleware: X-Forwarded-* of the trusted proxies is believed, everyone else's is not seen."""

    def __init__(self, app: Callable[..., Iterable[bytes]], networks: Sequence[IPv4Network | IPv6Network]) -> None:
        self._plain: WSGIApplication = app
        self._forwarded: WSGIApplication = ProxyFix(app, x_for=1, x_proto=1, x_host=1, x_port=1, x_prefix=1)
        self._networks = networks

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        app = self._forwarded if self._is_trusted(environ) else self._plain
        return app(environ, start_response)

    def _is_trusted(self, environ: Mapping[str, object]) -> bool:
        try:
            caller = ip_address(str(environ.get("REMOTE_ADDR", "")))
        except ValueError:
            return False
        caller = getattr(caller, "ipv4_mapped", None) or caller
        return any(caller in network for network in self._networks)
