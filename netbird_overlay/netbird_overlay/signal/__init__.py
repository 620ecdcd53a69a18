"""Signal: the sealed messages by which two peers agree on a path, and the client of the server that passes them on."""
