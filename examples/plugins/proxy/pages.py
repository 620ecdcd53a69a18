"""Pages for the proxy's own answers to browsers, with the operator's name."""

from __future__ import annotations

from html import escape

from pydantic import BaseModel, ConfigDict

from netbird_proxy import Page, Pages, PluginInfo, Proxy, Rendered, hookimpl


class BrandOptions(BaseModel):
    """`[brand]` in the settings file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = "Our proxy"


class Brand:
    """A page with a heading, a sentence, the offered logins, and the exchange's id for the operator."""

    @hookimpl
    def describe(self) -> PluginInfo:
        return PluginInfo(summary="pages with the operator's name", options=BrandOptions)

    @hookimpl
    def pages(self, proxy: Proxy) -> Pages:
        name = proxy.options(BrandOptions).name

        def page(what: Page) -> Rendered:
            links = [f'<p><a href="{escape(offer.action)}">{escape(offer.label)}</a></p>' for offer in what.offers]
            lines = [
                f'<!doctype html><html lang="en"><title>{escape(name)}</title>',
                f"<h1>{escape(name)}</h1><p>{escape(what.sentence)}</p>",
                *links,
                f"<p>{escape(what.exchange)}</p></html>",
            ]
            policy = (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'")
            return Rendered("\n".join(lines).encode(), headers=(policy,))

        return page
