"""The command line `netbird-management`."""

from netbird_management.cli.program import app, main

__all__ = ["app", "main"]
