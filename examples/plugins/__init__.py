"""A small example plugin for each hook. To install one, only an entry point that names its class is missing."""
