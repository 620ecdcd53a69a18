"""Writes `openapi.json`: run by `make docs`."""

from pathlib import Path

from netbird_management.rest import openapi
from netbird_management.rest.app import api
from netbird_management.rest.first_party import first_party_routes

Path(__file__).with_suffix(".json").write_text(openapi.text(api(first_party_routes())))
