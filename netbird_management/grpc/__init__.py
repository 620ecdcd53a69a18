"""The services that proxies and peers call."""
