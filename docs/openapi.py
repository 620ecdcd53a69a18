"""Writes `openapi.json`: run by `make docs`."""

from pathlib import Path

from netbird_management.rest import openapi
from netbird_management.rest.app import described
from netbird_management.rest.first_party import first_party_routes

Path(__file__).with_suffix(".json").write_text(openapi.text(described(first_party_routes())))
