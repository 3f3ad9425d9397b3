"""Targets are found by name, and errors say what is missing."""

from __future__ import annotations

import functools
import sys
from pathlib import Path

import pytest

from smartipc.workers.loading import TargetError, flavour, load_target

SOURCE = """
import functools

async def turning(ipc): ...

def computing(ipc): ...

class Kit:
    @staticmethod
    def method(ipc): ...

class Callable:
    async def __call__(self, ipc): ...

partial = functools.partial(turning, 1)
instance = Callable()
number = 3
"""


@pytest.fixture(autouse=True)
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "loading_good.py").write_text(SOURCE)
    (tmp_path / "loading_needs.py").write_text("import loading_not_there\n")
    (tmp_path / "loading_raises.py").write_text("raise RuntimeError('broken at import')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    for name in [name for name in sys.modules if name.startswith("loading_")]:
        del sys.modules[name]


@pytest.mark.parametrize("name", ["turning", "computing", "Kit.method", "partial", "instance"])
def test_callables_are_found(name: str) -> None:
    assert callable(load_target(f"loading_good:{name}"))


@pytest.mark.parametrize(
    ("target", "says"),
    [
        ("loading_good", "expected 'package.module:function'"),
        (":function", "expected 'package.module:function'"),
        ("loading_good:", "expected 'package.module:function'"),
        ("loading_absent:run", "no module named 'loading_absent'"),
        ("loading_absent.deeper:run", "no module named 'loading_absent'"),
        ("loading_needs:run", "loading_needs imports 'loading_not_there', which is not installed"),
        ("loading_raises:run", "importing loading_raises raised RuntimeError: broken at import"),
        ("loading_good:nothing", "loading_good has no attribute 'nothing'"),
        ("loading_good:Kit.nothing", "loading_good.Kit has no attribute 'nothing'"),
        ("loading_good:number", "loading_good.number is a int, not a function"),
    ],
)
def test_errors_name_what_is_missing(target: str, says: str) -> None:
    with pytest.raises(TargetError) as caught:
        load_target(target)
    assert says in str(caught.value)
    assert repr(target) in str(caught.value)


def test_an_error_in_the_module_keeps_its_traceback() -> None:
    with pytest.raises(TargetError) as caught:
        load_target("loading_raises:run")
    assert "loading_raises.py" in caught.value.detail


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("turning", "async"),
        ("partial", "async"),
        ("instance", "async"),
        ("computing", "blocking"),
        ("Kit.method", "blocking"),
        ("Callable", "blocking"),
    ],
)
def test_flavour_sees_through_wrappers(name: str, expected: str) -> None:
    assert flavour(load_target(f"loading_good:{name}")) == expected


def test_flavour_follows_functools_wraps() -> None:
    async def inner() -> None: ...

    @functools.wraps(inner)
    def outer() -> object:
        return inner()

    assert flavour(outer) == "async"
