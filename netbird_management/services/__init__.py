"""The reverse-proxy domain: services, what is sent of them, clusters, tokens, access logs."""
