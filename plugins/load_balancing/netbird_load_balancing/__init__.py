"""Load balancing among the upstreams of a route: weights, policies, sticky clients and passive health."""
