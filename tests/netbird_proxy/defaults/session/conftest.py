"""What these tests begin with."""

from __future__ import annotations

import pytest

from tests.netbird_proxy.defaults.session.service import Service


@pytest.fixture
def password() -> Service:
    return Service(password=True)
