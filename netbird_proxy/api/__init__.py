"""The types and functions that plugins and the proxy exchange. Plugins import these names from `netbird_proxy`."""
