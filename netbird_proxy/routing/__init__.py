"""From mappings to routes, and from a host and a path to the route that serves them."""
