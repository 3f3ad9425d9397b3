"""A server and a client in every pair of flavours over every transport."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from ends import TRANSPORTS, Pair, Place


@pytest.fixture(params=TRANSPORTS)
def place(request: pytest.FixtureRequest, folder: Path) -> Place:
    return Place(request.param, folder)


@pytest.fixture(params=["async-async", "sync-sync", "async-sync", "sync-async"])
def pair(request: pytest.FixtureRequest, place: Place) -> Iterator[Pair]:
    server, client = request.param.split("-")
    pair = Pair(place, server, client)
    yield pair
    pair.close()
