"""The address of a request's client: the peer's, or the one that trusted proxies report."""

from collections.abc import Iterable, Sequence
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from django_sse.conf import UNIX_PEER

Address = IPv4Address | IPv6Address

# The prefix length of the IPv6 network that one subscriber commonly gets (RFC 6177). The subscriber
# may use any of its addresses.
_SUBSCRIBER_PREFIX = 64

# IPv6 networks whose addresses contain an IPv4 address in the last 32 bits: RFC 6052, 2.1,
# RFC 8215, and RFC 2765, 2.1.
_TRANSLATED = tuple(map(IPv6Network, ("64:ff9b::/96", "64:ff9b:1::/48", "::ffff:0:0:0/96")))


def client_address(
    peer: str | None, forwarded_for: str, trusted_proxies: Sequence[str]
) -> str | None:
    """Return the address of a request's client, or None if it is unknown.

    An IPv6 address counts as its /64 network, or as the IPv4 address that it contains. Never
    raises, whatever the header says.

    Args:
        peer: The address at the other end of the connection; None for a Unix socket.
        forwarded_for: The header ``X-Forwarded-For``. Each proxy adds its peer at the right.
        trusted_proxies: Addresses, networks, and ``"unix:"``. If empty, the peer is the client.
    """
    client = _parse(peer or "")
    if client is None and UNIX_PEER not in trusted_proxies:
        return None
    networks = _networks(tuple(trusted_proxies))
    for hop in reversed(forwarded_for.split(",")):
        if client is not None and not _is_in(client, networks):
            break
        before = _parse(hop)
        if before is None:
            # A trusted proxy reported no address, so the request counts for the proxy itself.
            break
        client = before
    return None if client is None else _counted(client)


def _parse(text: str) -> Address | None:
    text = text.strip()
    if text.startswith("["):
        # Some proxies add the port.
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ip_address(text)
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return mapped or address


def _is_in(address: Address, networks: Iterable[IPv4Network | IPv6Network]) -> bool:
    return any(address in network for network in networks)


def _counted(address: Address) -> str:
    if isinstance(address, IPv4Address):
        return str(address)
    if inside := _ipv4_inside(address):
        return str(inside)
    return str(IPv6Network((int(address), _SUBSCRIBER_PREFIX), strict=False))


def _ipv4_inside(address: IPv6Address) -> IPv4Address | None:
    """Return the IPv4 address inside an IPv6 address, or None.

    The owner of the IPv4 address has as many such IPv6 addresses as they like. Do not use this to
    decide whom to trust, since anybody can send from such an address.
    """
    if address.sixtofour:
        return address.sixtofour
    if address.teredo:
        return address.teredo[1]
    if any(address in network for network in _TRANSLATED):
        return IPv4Address(int(address) & 0xFFFFFFFF)
    return None


@lru_cache(maxsize=8)
def _networks(proxies: Sequence[str]) -> list[IPv4Network | IPv6Network]:
    return [ip_network(proxy) for proxy in proxies if proxy != UNIX_PEER]
