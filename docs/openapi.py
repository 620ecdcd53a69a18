"""Writes `openapi.json`: run by `make docs`."""

from pathlib import Path

from netbird_management.rest import openapi
from netbird_management.rest.app import api

Path(__file__).with_suffix(".json").write_text(openapi.text(api()))
