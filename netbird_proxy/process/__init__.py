"""The process around the application: settings, state, loading, and the server that starts and stops everything."""
