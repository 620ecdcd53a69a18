"""Sources of mappings: management's stream and a file, and the decoding that both share."""
