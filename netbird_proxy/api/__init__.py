"""Everything that a plugin gets from the proxy and gives to it. Plugins import these names from `netbird_proxy`."""
