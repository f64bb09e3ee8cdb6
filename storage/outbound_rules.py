"""Which addresses that strangers name may be called: what is seen before anybody is asked where a name leads.

What `ssrfguard` does right is used as it is: its table of addresses (with what IPv6 forms carry inside) and its
reading of hosts.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network
from typing import Final
from urllib.parse import SplitResult, quote, urljoin, urlsplit

import ssrfguard
from ssrfguard import AddressTable, Block, BlockedAddressError, Policy, Reach, SSRFGuardError, Target

_DEFAULT_PORTS: Final = {"http": 80, "https": 443}
# What may stand in an address as it is; everything else is sent percent-encoded.
_UNQUOTED: Final = "%/:=&?~#+!$,;'@()*[]"

_FIRST_UNPRIVILEGED_PORT: Final = 1024
# Above 1023, where services listen that must never be spoken to: what browsers block (the Fetch standard's "bad
# ports"), then databases, queues and control planes, which answer whoever the network lets through.
_FOREIGN_PORTS: Final = frozenset(
    {1719, 1720, 1723, 2049, 3659, 4045, 4190, 5060, 5061, 6000, 6566, 6679, 6697, 10080, *range(6665, 6670)}
) | frozenset(
    {1433, 1521, 2181, 2375, 2376, 2379, 2380, 3306, 3389, 5432, 5672, 5900, 5984, 6379, 6443, 9042, 9092, 9200}
    | {9300, 10250, 10255, 11211, 15672, 26379, 27017, 27018, 27019}
)

# Stricter than the registries: of IPv6 only what is handed out as global unicast, and none of the anycast addresses
# that the nearest router answers.
_ADDRESSES: Final = AddressTable(
    (
        *(block for block in ssrfguard.DEFAULT_DENIED.blocks if block.reach is not Reach.PERMITTED),
        Block(ip_network("::/0"), "Not global unicast", "RFC4291", Reach.DENIED),
        Block(ip_network("2000::/3"), "Global unicast", "RFC4291", Reach.PERMITTED),
    )
)


class OutboundRefused(Exception):
    """This address may never be called. The text is safe to show: it repeats no part of the address."""


@dataclass(frozen=True)
class Place:
    """A URL that was read once: where to connect, and what to ask for there."""

    target: Target
    host_header: str
    path: str


class AddressRules:
    """Addresses are public, or in `allowed` networks.

    Ports: in an allowed network all; elsewhere 80, 443 and the unprivileged ones, less those on which other services
    than the web's are known to listen.
    """

    def __init__(self, allowed: Sequence[IPv4Network | IPv6Network]) -> None:
        self._allowed = tuple(allowed)
        self.policy = Policy(denied_networks=_ADDRESSES, allowed_networks=self._allowed)

    def read(self, url: str) -> Place:
        """Raises OutboundRefused for what the address itself gives away, and asks nobody.

        Refusals are worded anew: the library's repeat the whole address, with whatever secret stands in it.
        """
        try:
            parts = urlsplit(url)
            port = parts.port or _DEFAULT_PORTS.get(parts.scheme, 0)
            path = quote(parts.path or "/", safe=_UNQUOTED)
            if parts.query:
                path += f"?{quote(parts.query, safe=_UNQUOTED)}"
        except ValueError:
            raise OutboundRefused("the address is not well-formed") from None
        if parts.scheme not in _DEFAULT_PORTS:
            raise OutboundRefused("only http and https addresses are opened")
        if parts.username is not None or parts.password is not None:
            raise OutboundRefused("an address with a user name or password is not opened")
        target = self._target(url, parts, port)
        self._check_port_of_host(target)
        return Place(target=target, host_header=_host_header(target), path=path)

    def _target(self, url: str, parts: SplitResult, port: int) -> Target:
        policy = replace(self.policy, allowed_ports=frozenset({port or _DEFAULT_PORTS[parts.scheme]}))
        try:
            target = policy.check_url(url)
        except SSRFGuardError as refused:
            if isinstance(refused.__cause__, BlockedAddressError):
                raise not_public() from None
            raise OutboundRefused("the address is not well-formed") from None
        if not target.is_literal_address:
            self._check_name(target.host.rstrip("."))
        return target

    def _check_name(self, host: str) -> None:
        """Names that are addresses in disguise: `0x7f.1` to the system's resolver, and this machine's own name."""
        if host == "localhost" or host.endswith(".localhost"):
            if not any(self._is_allowed(address) for address in (IPv4Address("127.0.0.1"), IPv6Address("::1"))):
                raise not_public()
            return
        try:
            socket.inet_aton(host)
        except OSError:
            return
        raise OutboundRefused("the address is not well-formed")

    def _check_port_of_host(self, target: Target) -> None:
        if target.address is not None:
            self.check_port(target.port, target.address)
        elif not self._allowed and not _is_web_port(target.port):
            raise _port_refused(target.port)

    def check_port(self, port: int, address: IPv4Address | IPv6Address) -> None:
        """Once it is known where a name leads. Raises OutboundRefused."""
        if not _is_web_port(port) and not self._is_allowed(address):
            raise _port_refused(port)

    def _is_allowed(self, address: IPv4Address | IPv6Address) -> bool:
        return any(address in network for network in self._allowed)


def joined(url: str, location: str) -> str:
    """Where a redirect leads. Headers are read as Latin-1, while servers write UTF-8, and some leave blanks.

    Raises OutboundRefused.
    """
    try:
        return urljoin(url, quote(location.encode("latin-1"), safe=_UNQUOTED))
    except ValueError:
        raise OutboundRefused("the address is not well-formed") from None


def not_public() -> OutboundRefused:
    return OutboundRefused("the address is not public")


def _host_header(target: Target) -> str:
    host = target.host.rstrip(".")
    host = f"[{host}]" if ":" in host else host
    return host if target.port == _DEFAULT_PORTS[target.scheme] else f"{host}:{target.port}"


def _is_web_port(port: int) -> bool:
    return port in _DEFAULT_PORTS.values() or (port >= _FIRST_UNPRIVILEGED_PORT and port not in _FOREIGN_PORTS)


def _port_refused(port: int) -> OutboundRefused:
    return OutboundRefused(f"port {port} is not opened")
