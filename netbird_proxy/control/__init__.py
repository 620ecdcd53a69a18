"""What the proxy hears from management, and how it asks."""
