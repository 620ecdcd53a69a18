"""The demo: management, proxy, upstreams and peers as real processes, on loopback and without root."""
