"""Paths: the decision which way the datagrams to each peer take, and the parts that carry them."""
