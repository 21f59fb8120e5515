"""Implementations of norms of rows, each of which passes the same tests."""

import pytest
from interpreted import PLATFORMS, interpreted


@pytest.fixture(scope="module", params=PLATFORMS)
def implementation(request):
    with interpreted(request.param) as name:
        yield name
