"""Domain names: canonical spelling, parents and subdomains, and public suffixes."""

from collections.abc import Iterator
from functools import cache
from ipaddress import ip_address

import idna
from publicsuffixlist import PublicSuffixList

from netbird_management.model.errors import InvalidArgument


def fold(domain: str) -> str:
    """The canonical spelling in which domains are stored and compared: ASCII (IDNA), lower case, no trailing dot.

    Raises `ValueError` for text that is not a domain name.
    """
    text = domain.strip().rstrip(".").lower()
    if not text or len(text) > 253:
        raise ValueError(f"{domain!r} is not a domain name")
    if not text.isascii():
        try:
            text = idna.encode(text, uts46=True).decode("ascii").lower()
        except idna.IDNAError as error:
            raise ValueError(f"{domain!r} is not a domain name") from error
    for label in text.split("."):
        inner = label.replace("-", "a").replace("_", "a")
        if not label or len(label) > 63 or not inner.isalnum() or label.startswith("-") or label.endswith("-"):
            raise ValueError(f"{domain!r} is not a domain name")
    return text


def folded(domain: str) -> str:
    """Like `fold`, for a domain that a client sent. Raises `InvalidArgument`."""
    try:
        return fold(domain)
    except ValueError as error:
        raise InvalidArgument(str(error)) from error


def is_under(domain: str, parent: str) -> bool:
    """True if a folded domain equals `parent` or is a subdomain of it."""
    return domain == parent or domain.endswith("." + parent)


def upwards(domain: str) -> Iterator[str]:
    """A folded domain and each of its parent domains, from the longest to the shortest."""
    yield domain
    while "." in domain:
        domain = domain.partition(".")[2]
        yield domain


def fold_address(address: str) -> str:
    """The canonical spelling of a cluster's address: an IP address in its canonical form, else as `fold`.

    Raises `ValueError` for text that is neither.
    """
    try:
        return str(ip_address(address.strip()))
    except ValueError:
        return fold(address)


def covers(cluster: str, domain: str) -> bool:
    """True if a folded domain equals the address of a cluster or is a subdomain of it. An IP address covers no
    domain."""
    return is_under(domain, cluster) and not is_ip(cluster)


def is_public_suffix(domain: str) -> bool:
    """True if the public may register names directly below a folded domain: `com`, `co.uk`, `github.io`, any single
    label."""
    return bool(_public_suffixes().is_public(domain))


@cache
def _public_suffixes() -> PublicSuffixList:
    return PublicSuffixList()  # the package includes the list and reads nothing from the network


def is_ip(text: str) -> bool:
    """True if a cluster's address is an IP address, in any spelling."""
    try:
        ip_address(text)
    except ValueError:
        return False
    return True
