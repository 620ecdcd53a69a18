"""The kit for testing plugins, and the proxy itself: fakes that behave, makers of values, transcripts, servers.

Everything here implements a protocol of `netbird_proxy.api`; nothing patches the proxy.
"""
