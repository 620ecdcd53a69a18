"""The signal server of a NetBird network: as a plugin of management, and as a process of its own."""
