"""The operator's side: the command line, the admin socket, health and metrics, and the memory behind `explain`."""
