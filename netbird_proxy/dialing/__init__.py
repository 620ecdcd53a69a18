"""Towards upstreams: opening streams, TLS over them, HTTP/1.1 on them, and keeping them for the next exchange."""
