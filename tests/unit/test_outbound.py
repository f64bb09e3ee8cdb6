"""What the door refuses by the look of an address alone, in every spelling."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.outbound import OutboundDoor, OutboundFailed, OutboundReason, OutboundRefused

DOOR = OutboundDoor()
DOOR_TO_LOOPBACK = OutboundDoor(allowed_private_networks=[IPv4Network("127.0.0.0/8")])

PRIVATE = (
    "0.0.0.0",
    "0.1.2.3",
    "10.0.0.1",
    "100.64.0.1",
    "100.100.100.200",
    "100.127.255.255",
    "127.0.0.1",
    "127.255.255.254",
    "169.254.0.1",
    "169.254.169.254",
    "169.254.170.2",
    "172.16.0.1",
    "172.31.255.255",
    "192.0.0.9",
    "192.0.0.192",
    "192.0.2.1",
    "192.88.99.1",
    "192.168.0.1",
    "198.18.0.1",
    "198.51.100.1",
    "203.0.113.1",
    "224.0.0.1",
    "239.255.255.250",
    "240.0.0.1",
    "255.255.255.255",
)


def _in_ipv6(address: IPv4Address) -> list[str]:
    """Everything in IPv6 that carries this address to a gateway or to the kernel itself."""
    high, low = divmod(int(address), 1 << 16)
    teredo_client = ~int(address) & 0xFFFFFFFF
    return [
        f"::ffff:{address}",
        f"::ffff:{high:x}:{low:x}",
        f"0:0:0:0:0:ffff:{high:04x}:{low:04x}",
        f"64:ff9b::{address}",
        f"64:ff9b::{high:x}:{low:x}",
        f"64:ff9b:1::{high:x}:{low:x}",
        f"64:ff9b:1:ffff::{high:x}:{low:x}",
        f"2002:{high:x}:{low:x}::1",
        f"2001:0:{high:x}:{low:x}::",
        f"2001:0:808:808:0:0:{teredo_client >> 16:x}:{teredo_client & 0xFFFF:x}",
    ]


def _in_ipv4(address: IPv4Address) -> list[str]:
    """Every spelling of an IPv4 address that the C library reads, and those that a browser normalises to it."""
    a, b, c, d = address.packed
    number = int(address)
    dotted = str(address)
    return [
        dotted,
        f"{dotted}.",
        f"{number}",
        f"{number}.",
        f"0x{number:x}",
        f"0X{number:08X}",
        f"0{number:o}",
        f"{a}.{number & 0xFFFFFF}",
        f"{a}.{b}.{number & 0xFFFF}",
        f"0x{a:x}.0x{b:x}.0x{c:x}.0x{d:x}",
        f"0{a:o}.0{b:o}.0{c:o}.0{d:o}",
        f"000{a:o}.{b}.{c}.{d}",
        f"0x{a:x}.{b}.0{c:o}.{d}",
        f"0x{a:x}.{number & 0xFFFFFF}",
        f"00{a}.0{b}.{c}.{d}",
        dotted.translate({ord(digit): 0xFF10 + int(digit) for digit in "0123456789"}),
        dotted.replace(".", "。"),
        dotted.replace(".", "．"),
        dotted.replace("1", "①").replace("2", "②"),
        dotted.replace(".", "%2e"),
        "%31" + dotted,
    ]


@pytest.mark.parametrize("address", PRIVATE)
def test_an_address_that_is_not_public_is_refused_in_every_spelling(address: str) -> None:
    parsed = IPv4Address(address)
    hosts = [*_in_ipv4(parsed), *(f"[{form}]" for form in _in_ipv6(parsed))]
    for host in hosts:
        for url in (f"http://{host}/", f"https://{host}:8443/a?b=c#d", f"HTTP://{host}"):
            with pytest.raises(OutboundRefused):
                DOOR.check(url)


_DENIED_NETWORKS = [
    IPv4Network("0.0.0.0/8"),
    IPv4Network("10.0.0.0/8"),
    IPv4Network("100.64.0.0/10"),
    IPv4Network("127.0.0.0/8"),
    IPv4Network("169.254.0.0/16"),
    IPv4Network("172.16.0.0/12"),
    IPv4Network("192.168.0.0/16"),
    IPv4Network("224.0.0.0/3"),
]


@given(
    st.sampled_from(_DENIED_NETWORKS).flatmap(lambda net: st.integers(0, net.num_addresses - 1).map(net.__getitem__))
)
def test_no_private_address_passes_in_any_disguise(address: IPv4Address) -> None:
    for host in [*_in_ipv4(address), *(f"[{form}]" for form in _in_ipv6(address))]:
        with pytest.raises(OutboundRefused):
            DOOR.check(f"http://{host}/")


@pytest.mark.parametrize(
    "host",
    [
        "::",
        "::1",
        "0:0:0:0:0:0:0:1",
        "::2",
        "::127.0.0.1",
        "::7f00:1",
        "100::1",
        "2001:db8::1",
        "2001:2::1",
        "2001:10::1",
        "3fff::1",
        "5f00::1",
        "fc00::1",
        "fd00:ec2::254",
        "fd12:3456::1",
        "fe80::1",
        "fec0::1",
        "ff02::1",
        "ff0e::1",
        "4000::1",
        "8000::1",
        "2001:1::1",
    ],
)
def test_an_ipv6_address_that_is_not_global_unicast_is_refused(host: str) -> None:
    with pytest.raises(OutboundRefused, match="not public"):
        DOOR.check(f"http://[{host}]/")


@pytest.mark.parametrize("host", ["fe80::1%eth0", "fe80::1%25eth0", "2606:4700::1111%251"])
def test_a_zone_is_refused(host: str) -> None:
    with pytest.raises(OutboundRefused):
        DOOR.check(f"http://[{host}]/")


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST", "localhost.", "a.localhost", "ⓛⓞⓒⓐⓛⓗⓞⓢⓣ", "ｌｏｃａｌｈｏｓｔ"]
)
def test_this_machines_own_name_is_refused(host: str) -> None:
    with pytest.raises(OutboundRefused, match="not public"):
        DOOR.check(f"http://{host}/")


@pytest.mark.parametrize(
    "url",
    [
        "",
        "picture.png",
        "//example.com/a.png",
        "/etc/passwd",
        "file:///etc/passwd",
        "ftp://example.com/a.png",
        "gopher://example.com/",
        "data:image/png;base64,AAAA",
        "javascript:alert(1)",
        "unix:///var/run/docker.sock",
        "http+unix://%2fvar%2frun%2fdocker.sock/",
        "http:",
        "http://",
        "http:///a.png",
        "http:/example.com/a.png",
        "http:example.com",
        "http://?a",
        "http://:80/",
        "http://[::1",
        "http://[]/",
        "http://exa mple.com/",
        "http://example.com/a b",
        "http://example.com/\r\nHost: other",
        "http://exam\tple.com/",
        "\x00http://example.com/",
        " http://example.com/",
        "http://example.com\0.other/",
        "http://example..com/",
        "http://-example.com/",
        "http://exa_mple!.com/",
        "http://" + "a" * 64 + ".com/",
        "http://" + "a." * 130 + "com/",
        "http://example.com/" + "a" * 9000,
        "http://example.com:99999/",
        "http://example.com:-1/",
        "http://example.com:8O/",
        "http://example.com:80:80/",
        "http://\ud800.com/",
        "http://example.com/\ud800",
        "http://12345678901234567890/",
        "http://256.256.256.256/",
        "http://1.2.3.4.5/",
        "http://0x1.2.3.4.5.0x6.0x7f000001/\n",
    ],
)
def test_what_is_no_plain_web_address_is_refused(url: str) -> None:
    with pytest.raises(OutboundRefused):
        DOOR.check(url)


@pytest.mark.parametrize(
    "url",
    [
        "http://user@example.com/",
        "http://user:password@example.com/",
        "http://:password@example.com/",
        "http://@example.com/",
        "http://example.com@127.0.0.1/",
        "http://127.0.0.1@example.com/",
        "http://example.com\\@127.0.0.1/",
        "http://127.0.0.1\\@example.com/",
        "http://example.com:80@127.0.0.1/",
    ],
)
def test_a_user_name_or_password_is_refused(url: str) -> None:
    with pytest.raises(OutboundRefused):
        DOOR.check(url)


@pytest.mark.parametrize(
    "url",
    [
        "http://example.com",
        "https://example.com/a.png",
        "HTTPS://EXAMPLE.COM/A.PNG",
        "https://example.com./a.png",
        "https://example.com:443/a.png?signature=a%2Fb&x=1,2#part",
        "http://example.com:8080/",
        "https://example.com:8443/",
        "http://example.com:3000/hook",
        "https://bücher.example/ä.png",
        "https://xn--bcher-kva.example/",
        "http://8.8.8.8/",
        "http://[2606:4700:4700::1111]/",
        "http://[::ffff:8.8.8.8]/",
        "http://[64:ff9b::808:808]/",
        "http://0x.example/",
        "http://10.example/",
        "http://localhost.example/",
        "http://mylocalhost/",
    ],
)
def test_a_plain_web_address_passes(url: str) -> None:
    DOOR.check(url)


@pytest.mark.parametrize("port", [80, 443, 1024, 3000, 5000, 8000, 8080, 8443, 9000, 49152, 65535])
def test_the_webs_ports_and_the_unprivileged_ones_pass(port: int) -> None:
    DOOR.check(f"https://example.com:{port}/")
    DOOR.check(f"https://8.8.8.8:{port}/")


@pytest.mark.parametrize("port", [1, 22, 25, 53, 110, 445, 465, 993, 1023, 2375, 3306, 5432, 6379, 6667, 9200, 11211])
def test_the_ports_of_other_services_are_refused(port: int) -> None:
    for host in ("example.com", "8.8.8.8", "[2606:4700:4700::1111]"):
        with pytest.raises(OutboundRefused, match=f"port {port} is not opened"):
            DOOR.check(f"http://{host}:{port}/")


def test_port_zero_is_never_opened_whatever_stands_for_it() -> None:
    for door in (DOOR, DOOR_TO_LOOPBACK):
        with pytest.raises(OutboundRefused):
            door.check("http://127.0.0.1:0/")


def test_an_allowed_network_passes_on_every_port_and_its_neighbours_do_not() -> None:
    for port in (1, 80, 6379):
        DOOR_TO_LOOPBACK.check(f"http://127.0.0.1:{port}/")
        DOOR_TO_LOOPBACK.check(f"http://localhost:{port}/")
    for host in ("10.0.0.1", "[::1]", "169.254.169.254", "[::ffff:10.0.0.1]", "[64:ff9b::a00:1]"):
        with pytest.raises(OutboundRefused, match="not public"):
            DOOR_TO_LOOPBACK.check(f"http://{host}/")
    with pytest.raises(OutboundRefused, match="port 22"):
        DOOR_TO_LOOPBACK.check("http://8.8.8.8:22/")


def test_a_disguised_spelling_of_an_allowed_address_is_still_refused() -> None:
    for host in ("2130706433", "0x7f.1", "0177.0.0.1", "127.1"):
        with pytest.raises(OutboundRefused):
            DOOR_TO_LOOPBACK.check(f"http://{host}/")


def test_a_name_may_have_any_port_at_first_where_it_could_lead_to_an_allowed_network() -> None:
    DOOR_TO_LOOPBACK.check("http://receiver.internal:25/")


def test_an_ipv6_network_can_be_allowed() -> None:
    door = OutboundDoor(allowed_private_networks=[ip_network("fd00::/8"), ip_network("::1/128")])
    door.check("http://[fd00::1]:9/")
    door.check("http://[::1]:9/")
    door.check("http://localhost/")
    with pytest.raises(OutboundRefused):
        door.check("http://127.0.0.1/")


def test_a_network_that_would_hide_others_inside_it_is_refused_at_start() -> None:
    with pytest.raises(ValueError, match="64:ff9b::/96"):
        OutboundDoor(allowed_private_networks=[ip_network("64:ff9b::/96")])


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1/?token=hunter2",
        "http://example.com:22/?token=hunter2",
        "http://user:hunter2@example.com/",
        "http://example.com:hunter2/",
        "ftp://example.com/hunter2",
        "http://exa mple.com/hunter2",
        "http://hunter2℀@example.com/",
        "http://[hunter2]/",
        "http://0x7f.1/hunter2",
    ],
)
def test_no_refusal_repeats_the_address(url: str) -> None:
    with pytest.raises(OutboundRefused) as caught:
        DOOR.check(url)
    assert "hunter2" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_a_failure_says_what_happened_in_words() -> None:
    failed = OutboundFailed(OutboundReason.BAD_STATUS, status=404)
    assert str(failed) == "the address answered with status 404"
    assert (failed.reason, failed.status) == (OutboundReason.BAD_STATUS, 404)
    for reason in OutboundReason:
        assert str(OutboundFailed(reason)).startswith("the address")


def test_ipv4_and_ipv6_are_told_apart_in_allowed_networks() -> None:
    """`::7f00:1` is inside `::/96`, whose IPv4 part lies in the allowed network; the IPv6 form was not allowed."""
    with pytest.raises(OutboundRefused):
        DOOR_TO_LOOPBACK.check(f"http://[{IPv6Address('::ffff:127.0.0.1')}]/")
