"""The unit tier loads neither Ray nor torch. Checked when it runs by itself: another tier may have loaded them."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

HEAVY = ("ray", "torch", "vllm", "transformers")
_IS_ALONE = pytest.StashKey[bool]()


def pytest_collection_finish(session: pytest.Session) -> None:
    here = Path(__file__).parent
    session.stash[_IS_ALONE] = all(item.path.is_relative_to(here) for item in session.items)


@pytest.fixture(scope="module", autouse=True)
def stays_light(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if request.session.stash[_IS_ALONE]:
        assert not (loaded := [name for name in HEAVY if name in sys.modules]), f"{loaded} loaded in this module"
