"""Which URLs and addresses a picture may come from: public ones over http and https, and nothing else.

In: a URL, or the address that a connection is about to go to. Out: the URL as it will be asked, or the reason why not.
The lists are those of IANA's special-purpose registries, written out here since Python's `is_global` differs from
version to version; 168.63.129.16 is a cloud's metadata service at a public-looking address.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Network, ip_address, ip_network

from yarl import URL

MAX_URL = 4096
NOT_PUBLIC = [
    IPv4Network(network)
    for network in (
        "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "168.63.129.16/32", "169.254.0.0/16",
        "172.16.0.0/12", "192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15",
        "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/3",
    )
]  # fmt: skip
# Of IPv6 only 2000::/3 is given out; in it these are not single public hosts: protocols and tunnels (2001::/23 with
# Teredo, 2002::/16 is 6to4) and documentation. IPv4-mapped and -compatible addresses lie outside of it.
PUBLIC_6 = IPv6Network("2000::/3")
NOT_PUBLIC_6 = [IPv6Network(n) for n in ("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20")]
NAT64 = IPv6Network("64:ff9b::/96")
CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f]")
NUMBER = re.compile(r"(?:0x[0-9a-f]*|\d+)\.?", re.IGNORECASE)
QUAD = re.compile(r"(?:(?:25[0-5]|2[0-4]\d|1?\d?\d)(?:\.(?!$)|$)){4}")


class Unfetched(Exception):
    """A picture that was not fetched; the message is the reason in the index, the same in every run."""


class AddressRefused(OSError):
    """A host at an address that pictures must not come from. An OSError, since the HTTP client lets no other pass."""


Networks = tuple[IPv4Network | IPv6Network, ...]


def networks(allowed: Sequence[str]) -> Networks:
    """Networks from their CIDR form."""
    return tuple(ip_network(network) for network in allowed)


@functools.lru_cache(maxsize=4096)
def is_public(address: str, allowed: Networks = ()) -> bool:
    """Whether an address is one of a public host, or in a network that is allowed all the same."""
    try:
        found = ip_address(address)
    except ValueError:  # an IPv6 zone that is no number, or no address at all
        return False
    if any(found in network for network in allowed):
        return True
    if isinstance(found, IPv4Address):
        return not any(found in network for network in NOT_PUBLIC)
    if found in NAT64:
        return is_public(str(IPv4Address(int(found) & 0xFFFFFFFF)))
    return not found.scope_id and found in PUBLIC_6 and not any(found in network for network in NOT_PUBLIC_6)


def must_be_public(address: str, allowed: Networks) -> None:
    """Raises AddressRefused for an address that pictures must not come from."""
    if not is_public(address, allowed):
        raise AddressRefused("the host is at an address that is not public")


def vetted(text: str, allowed: Networks, base: URL | None = None) -> URL:
    """The URL of a caption, or of a redirect from `base`. Raises Unfetched for one that must not be asked."""
    if len(text) > MAX_URL:
        raise Unfetched(f"a URL of more than {MAX_URL} characters")
    if CONTROLS.search(text):
        raise Unfetched("a URL with control characters")
    try:
        url = URL(text.strip()) if base is None else base.join(URL(text.strip()))
        scheme, host, port = url.scheme, url.raw_host, url.port
        credentials = url.raw_user is not None or url.raw_password is not None
    except (ValueError, TypeError):
        raise Unfetched("not a URL") from None
    if scheme not in ("http", "https"):
        raise Unfetched("a URL of another scheme than http and https" if scheme else "not a URL")
    if not host or not port:
        raise Unfetched("a URL without a host" if not host else "a URL without a port")
    if credentials:
        raise Unfetched("a URL with credentials")
    if ":" in host or QUAD.fullmatch(host):
        if not is_public(host, allowed):
            raise Unfetched("the host is at an address that is not public")
    elif NUMBER.fullmatch(host.rstrip(".").rpartition(".")[2]):
        raise Unfetched("a host spelled as a number")
    return url.with_fragment(None)
