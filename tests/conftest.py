"""What every tier shares: where the checkout is, and that no test leaves the fast path by accident."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def checkout() -> Path:
    """Return the root of the repository."""
    return Path(__file__).parents[1]
