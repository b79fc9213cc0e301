import pytest
from hypothesis import given
from hypothesis import strategies as st

from django_sse.http.addresses import client_address

PROXIES = ["127.0.0.1", "10.0.0.0/8", "fd00::/8"]


@pytest.mark.parametrize(
    ("peer", "header", "trusted", "expected"),
    [
        # Nobody is trusted: the header is anyone's to make up.
        ("203.0.113.7", "", [], "203.0.113.7"),
        ("203.0.113.7", "198.51.100.1", [], "203.0.113.7"),
        ("203.0.113.7", "198.51.100.1", PROXIES, "203.0.113.7"),
        # One proxy, and several.
        ("127.0.0.1", "198.51.100.1", PROXIES, "198.51.100.1"),
        ("127.0.0.1", "198.51.100.1, 10.0.0.9,10.0.0.8", PROXIES, "198.51.100.1"),
        # What the client has sent itself stands to the left of its address.
        ("127.0.0.1", "192.0.2.1, 198.51.100.1", PROXIES, "198.51.100.1"),
        ("127.0.0.1", "10.0.0.1, 198.51.100.1, 10.0.0.8", PROXIES, "198.51.100.1"),
        # None but trusted ones, and none at all.
        ("127.0.0.1", "10.0.0.9, 10.0.0.8", PROXIES, "10.0.0.9"),
        ("127.0.0.1", "", PROXIES, "127.0.0.1"),
        # With a port, as some proxies write it.
        ("127.0.0.1", "198.51.100.1:4711", PROXIES, "198.51.100.1"),
        ("127.0.0.1", "[2001:db8::1]:4711", PROXIES, "2001:db8::/64"),
        ("127.0.0.1", "198.51.100.1:99999", PROXIES, "198.51.100.1"),
        ("127.0.0.1", "\t198.51.100.1 \t, 10.0.0.8 ", PROXIES, "198.51.100.1"),
        ("127.0.0.1", "10.0.0.9, " * 2000 + "10.0.0.8", PROXIES, "10.0.0.9"),
        # Of a zone, which is of the proxy's own.
        ("127.0.0.1", "2001:db8::1%eth0", PROXIES, "2001:db8::/64"),
        # IPv6 counts by what one subscriber has.
        ("2001:db8::1", "", [], "2001:db8::/64"),
        ("2001:db8:0:0:ffff::2", "", [], "2001:db8::/64"),
        ("2001:db8:0:1::1", "", [], "2001:db8:0:1::/64"),
        ("fd00::5", "2001:db8::1", PROXIES, "2001:db8::/64"),
        # IPv4, as a socket for both sees it.
        ("::ffff:203.0.113.7", "", [], "203.0.113.7"),
        ("::ffff:127.0.0.1", "198.51.100.1", PROXIES, "198.51.100.1"),
        # What is made of an IPv4 address counts as that: 6to4, Teredo, NAT64, SIIT.
        ("2002:cb00:7107::1", "", [], "203.0.113.7"),
        ("2002:cb00:7107:ffff::1", "", [], "203.0.113.7"),
        ("2001:0:4136:e378:8000:63bf:34ff:8ef8", "", [], "203.0.113.7"),
        ("64:ff9b::203.0.113.7", "", [], "203.0.113.7"),
        ("64:ff9b::203.0.113.8", "", [], "203.0.113.8"),
        ("64:ff9b:1::203.0.113.7", "", [], "203.0.113.7"),
        ("::ffff:0:203.0.113.7", "", [], "203.0.113.7"),
        ("127.0.0.1", "2002:cb00:7107::1", PROXIES, "203.0.113.7"),
        # ... and is not trusted as that.
        ("2002:0a00:0001::1", "198.51.100.1", PROXIES, "10.0.0.1"),
        ("64:ff9b::127.0.0.1", "198.51.100.1", PROXIES, "127.0.0.1"),
        # A Unix socket has no address.
        (None, "", [], None),
        ("", "", [], None),
        ("unix:/run/app.sock", "", [], None),
        (None, "198.51.100.1", PROXIES, None),
        (None, "198.51.100.1", ["unix:"], "198.51.100.1"),
        (None, "198.51.100.1, 10.0.0.8", ["unix:", *PROXIES], "198.51.100.1"),
        (None, "", ["unix:"], None),
        ("203.0.113.7", "198.51.100.1", ["unix:"], "203.0.113.7"),
    ],
)
def test_it_is_the_address_that_nobody_can_make_up(
    peer: str | None, header: str, trusted: list[str], expected: str | None
) -> None:
    assert client_address(peer, header, trusted) == expected


@pytest.mark.parametrize(
    "entry",
    [
        *("unknown", "_hidden", "", "1.2.3", "1.2.3.4.5", "999.1.1.1", "::g", "[", "]:1", "\x00"),
        *("1.2.3.04", "0x7f.1", "2130706433", "1.2.3.4/8", "for=1.2.3.4", '"1.2.3.4"'),
        *("1.2.3.4\n5", "\u0661.2.3.4", "1.2.3.4;1.2.3.5", "1.2.3.4 1.2.3.5", "x" * 10_000),
    ],
)
def test_an_entry_that_is_no_address_counts_as_the_proxy_that_passed_it_on(entry: str) -> None:
    assert client_address("127.0.0.1", f"198.51.100.1, {entry}", PROXIES) == "127.0.0.1"
    assert client_address("127.0.0.1", f"{entry}, 10.0.0.8", PROXIES) == "10.0.0.8"
    assert client_address("127.0.0.1", f"{entry}, 198.51.100.1", PROXIES) == "198.51.100.1"


@given(st.text() | st.none(), st.text() | st.text("0123456789abcdef:.,[] %"))
def test_no_header_raises_or_changes_whose_a_client_is_that_comes_directly(
    peer: str | None, header: str
) -> None:
    client_address(peer, header, [*PROXIES, "unix:"])
    assert client_address("203.0.113.7", header, PROXIES) == "203.0.113.7"


@given(st.text("0123456789abcdef:.,[] %"))
def test_what_a_client_sends_itself_does_not_change_whose_it_is(header: str) -> None:
    assert client_address("127.0.0.1", f"{header}, 198.51.100.1", PROXIES) == "198.51.100.1"
