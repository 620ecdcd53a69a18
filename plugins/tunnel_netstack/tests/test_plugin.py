"""Capabilities that a proxy with this plugin reports to management."""

from __future__ import annotations

from netbird_proxy.defaults import DEFAULTS
from netbird_proxy.routing.hooks import load_hooks
from netbird_proxy.sources.decode.codec import Codec


def test_management_learns_that_the_tunnel_follows_routes() -> None:
    """Without the claim it withholds targets behind a network."""
    without, having = (
        Codec(load_hooks(plugins, defaults=DEFAULTS)).capabilities(private=True).claims
        for plugins in (["direct_upstream"], ["direct_upstream", "tunnel_netstack"])
    )

    assert set(having) - set(without) == {"routes"}
