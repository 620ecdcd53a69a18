"""Where connections come in: host sockets and accounts' tunnels, TLS, and the request head's rules."""
