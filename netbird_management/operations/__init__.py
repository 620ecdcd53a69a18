"""Everything that changes or queries the store: one module a resource, one transaction a call."""
