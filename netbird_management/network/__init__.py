"""The overlay domain: accounts, users, groups, peers, policies and the maps made of them."""
