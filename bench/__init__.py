"""The comparison with nginx, Caddy and bare uvicorn, in one run: `python -m bench`."""
