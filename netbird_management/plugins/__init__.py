"""What plugins implement, receive and return: the hookspecs, the types of their steps, and the typed calls."""
