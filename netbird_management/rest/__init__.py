"""The public API over HTTP, with a router for each resource."""
