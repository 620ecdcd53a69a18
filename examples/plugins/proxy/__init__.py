"""Plugins of the proxy."""
