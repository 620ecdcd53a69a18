"""Several workers that serve as one proxy, and the parent process that starts, watches, reloads and stops them."""

UNANSWERED = "x-netbird-proxy-unanswered"
"""Header of an admin socket's answer: the numbers of the workers whose part is missing, separated by commas."""
