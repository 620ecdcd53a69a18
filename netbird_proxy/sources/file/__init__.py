"""Mappings from a TOML file: reading it, and applying it again after a change."""
