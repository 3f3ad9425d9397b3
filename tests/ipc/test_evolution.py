"""The evolution rules of docs/reference/contracts.md: what two ends of different ages understand of each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec
import pytest

from smartipc.ipc.errors import InvalidPayload
from smartipc.ipc.wire import codec


class Old(msgspec.Struct):
    path: str
    size: int = 0


class Added(msgspec.Struct):
    path: str
    size: int = 0
    owner: str = "nobody"


class Demanding(msgspec.Struct):
    path: str
    owner: str
    size: int = 0


class Removed(msgspec.Struct):
    path: str


class RemovedNeeded(msgspec.Struct):
    size: int = 0


class Widened(msgspec.Struct):
    path: str | None
    size: int = 0


class Reordered(msgspec.Struct):
    size: int = 0
    path: str = ""


@dataclass
class OldData:
    path: str
    size: int = 0


@dataclass
class AddedData:
    path: str
    size: int = 0
    owner: str = "nobody"


@pytest.mark.parametrize(
    ("sent", "wanted", "understood"),
    [
        (Added("p", 1, "me"), Old, Old("p", 1)),
        (Old("p", 1), Added, Added("p", 1, "nobody")),
        (AddedData("p", 1, "me"), OldData, OldData("p", 1)),
        (OldData("p", 1), AddedData, AddedData("p", 1, "nobody")),
        (Demanding("p", "me"), Old, Old("p")),
        (Old("p"), Demanding, None),
        (Removed("p"), Old, Old("p", 0)),
        (Old("p", 1), Removed, Removed("p")),
        (RemovedNeeded(1), Old, None),
        (Old("p", 1), RemovedNeeded, RemovedNeeded(1)),
        (Old("p", 1), Widened, Widened("p", 1)),
        (Widened("p", 1), Old, Old("p", 1)),
        (Widened(None, 1), Old, None),
        (Reordered(1, "p"), Old, Old("p", 1)),
        (Old("p", 1), Reordered, Reordered(1, "p")),
    ],
)
def test_what_the_other_end_understands(sent: Any, wanted: Any, understood: Any) -> None:
    data = codec.encode(sent)
    if understood is None:
        with pytest.raises(InvalidPayload):
            codec.decode(data, wanted)
    else:
        assert codec.decode(data, wanted) == understood
