"""Rules about heads, framing and names, without sockets. Both ends of the proxy apply them."""
