"""Tunnels by account, the generation of each account's answers, and revoked sessions."""
