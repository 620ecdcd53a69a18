"""Connections to upstreams: dialing, TLS, HTTP/1.1 on one connection, and pools."""
