"""ICE (RFC 8445) as far as NetBird's agents use it: one component, UDP, trickled candidates, regular nomination."""
