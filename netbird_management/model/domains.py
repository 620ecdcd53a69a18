"""Domains: their one spelling, and which cluster serves them."""

import idna


def fold(domain: str) -> str:
    """The spelling that domains are stored and compared in: ASCII (IDNA), lower case, no trailing dot.

    Raises `ValueError` for what is no domain name.
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


def is_under(domain: str, parent: str) -> bool:
    """Whether a folded domain is another one or lies below it."""
    return domain == parent or domain.endswith("." + parent)
