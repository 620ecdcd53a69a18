"""Rules of the engine once more, in Python: oracles that differential tests compare it with."""
