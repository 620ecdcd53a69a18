"""Mappings decoded from the wire to the model, with the check that a loaded plugin claims each field that is set."""
