"""What may be set per service and per target without any plugin, and what is no such setting."""

from __future__ import annotations

from typing import Any

import pytest
import trustme
from pydantic import ValidationError

from netbird_wire.core_settings import CoreSettings, CoreTargetSettings

CA = trustme.CA().cert_pem.bytes().decode()
KEY = trustme.CA().private_key_pem.bytes().decode()


def test_nothing_said_is_the_strict_choice() -> None:
    """Ambiguous paths are refused, other sites are refused, and the system's roots decide."""
    assert CoreSettings() == CoreSettings(ambiguous_path="reject", same_origin=True, ask_for_both=False)
    assert CoreTargetSettings() == CoreTargetSettings(ca="", server_name="")


@pytest.mark.parametrize(
    "said",
    [
        {"ambiguous_path": "Pass"},
        {"ambiguous_path": None},
        {"same_origin": "false"},
        {"same_origin": 0},
        {"ambigous_path": "pass"},
    ],
)
def test_a_service_says_nothing_else(said: dict[str, Any]) -> None:
    """A misspelt name or a value of another type is a mistake that somebody must hear of."""
    with pytest.raises(ValidationError):
        CoreSettings.model_validate(said)


def test_a_target_has_roots_and_a_name_of_its_own() -> None:
    """One certificate or several, and any host's name."""
    two = CA + trustme.CA().cert_pem.bytes().decode()
    said = {"ca": two, "server_name": "internal_api.example"}

    assert CoreTargetSettings.model_validate(said) == CoreTargetSettings(ca=two, server_name="internal_api.example")


@pytest.mark.parametrize(
    "said",
    [
        {"ca": "secret"},
        {"ca": "-----BEGIN CERTIFICATE-----\nsecret\n-----END CERTIFICATE-----\n"},
        {"ca": CA + KEY},
        {"ca": CA * 200},
        {"ca": b"\xff"},
        {"server_name": "secret\r\n"},
        {"server_name": "secret example"},
        {"server_name": "*.example"},
        {"server_name": "a" * 254},
        {"verify": False},
    ],
    ids=range(10),
)
def test_roots_and_names_that_cannot_be_used_are_refused(said: dict[str, Any]) -> None:
    """And the text that says so does not repeat them."""
    with pytest.raises(ValidationError) as caught:
        CoreTargetSettings.model_validate(said)

    assert "secret" not in str(caught.value)
    assert "PRIVATE KEY-" not in str(caught.value)
