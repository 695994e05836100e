"""Settings of the tests of algorithms."""

import pytest


@pytest.fixture(autouse=True)
def one_twin_of_every_kernel(one_twin):
    """All calls here compile no more."""
