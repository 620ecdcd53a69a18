"""The public API over HTTP: one router a resource."""
