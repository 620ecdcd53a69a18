"""Plugins of the management host."""
