"""Pure functions over snapshots: validation of services, mappings for proxies, policies and network maps for peers."""
