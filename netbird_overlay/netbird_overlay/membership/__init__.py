"""A node's membership in a NetBird network: login at management, network maps, and what they mean for the node."""
