"""The origins that are genuine: live ones that a registered listener of this server issued."""

from __future__ import annotations

from netbird_proxy.api.model import AccountId, Address, Origin, PublicKey


class Origins:
    """The live origins of one server. An origin is recognized by identity: an equal copy is a forgery."""

    __slots__ = ("_live",)

    def __init__(self) -> None:
        self._live: set[Origin] = set()

    def issue(
        self,
        listener: str,
        account: AccountId | None,
        peer: Address,
        local: Address,
        behind_tls_proxy: bool = False,
        peer_key: PublicKey | None = None,
    ) -> Origin:
        """Make the origin of a new connection; the listener retires it when the connection ends."""
        origin = Origin(
            listener=listener,
            account=account,
            peer=peer,
            local=local,
            behind_tls_proxy=behind_tls_proxy,
            peer_key=peer_key,
        )
        self._live.add(origin)
        return origin

    def retire(self, origin: Origin) -> None:
        self._live.discard(origin)

    def recognizes(self, origin: object) -> bool:
        """True if this very object was issued here and its connection is still open."""
        return type(origin) is Origin and origin in self._live

    def __len__(self) -> int:
        return len(self._live)
