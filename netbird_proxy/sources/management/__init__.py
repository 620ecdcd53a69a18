"""Mappings and everything else that the proxy exchanges with management."""
