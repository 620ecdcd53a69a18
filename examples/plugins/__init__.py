"""One small plugin a hook. Each is a whole plugin: an entry point that names its class is all that is missing."""
