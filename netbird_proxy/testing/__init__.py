"""The kit for testing plugins, and the proxy itself: fakes that behave, makers of values, transcripts, servers.

Everything here is an implementation of a protocol of `netbird_proxy.steps` or `netbird_proxy.exchange`, never a patch.
"""
