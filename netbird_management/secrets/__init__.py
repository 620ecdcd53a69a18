"""Cryptography: hashed credentials, signed session tokens, one-time tokens, sealing at rest."""
