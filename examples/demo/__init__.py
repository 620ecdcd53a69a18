"""The story on real processes: management, proxy, upstreams and people's peers, on loopback and without root."""
