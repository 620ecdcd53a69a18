"""The interface of plugins: hookspecs, the types that hooks take and return, and the typed calls."""
