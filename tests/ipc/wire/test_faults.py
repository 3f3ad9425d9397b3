"""Errors over the wire: types, facts, declared application errors, and nothing that a peer can abuse."""

from __future__ import annotations

import msgspec
import pytest

from smartipc.ipc import errors
from smartipc.ipc.wire.faults import error_of, fault_of
from smartipc.ipc.wire.heads import Fault, decode, encode_fault


class OutOfStock(Exception):
    def __init__(self, item: str, left: int) -> None:
        super().__init__(item, left)
        self.item, self.left = item, left


class Special(OutOfStock): ...


def there_and_back(error: BaseException, declared: tuple[type[BaseException], ...] = ()) -> BaseException:
    fault = msgspec.msgpack.decode(
        msgspec.msgpack.encode(fault_of(error, instance="w:0", declared=declared)), type=Fault
    )
    return error_of(fault, method="w.m", declared=declared)


@pytest.mark.parametrize(
    "error",
    [
        errors.RequestCancelled(),
        errors.PermissionDenied(),
        errors.Overloaded(),
        errors.InvalidPayload("$.x[0]", "Expected `int`", processed="no"),
        errors.RequestTimeout(None, "expired before it ran", processed="no"),
        errors.NoSuchWorker("x", ["a", "b"]),
        errors.NoSuchMethod("w.m", ["w.a"]),
        errors.ConnectionLost("w:0", "draining", processed="no"),
        errors.RateLimited(1.5),
        errors.CircuitOpen(2.0),
        errors.WorkerDied("w:0", processed="yes"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_library_errors_keep_type_and_facts(error: errors.CallError) -> None:
    again = there_and_back(error)
    assert type(again) is type(error)
    assert isinstance(again, errors.CallError)
    assert again.processed == error.processed
    assert again.instance in ("w:0", None)
    for fact in ("path", "known", "retry_after"):
        if hasattr(error, fact):
            assert getattr(again, fact) == getattr(error, fact)


def test_other_exceptions_become_remote_errors() -> None:
    again = there_and_back(ValueError("bad value"))
    assert isinstance(again, errors.RemoteError)
    assert (again.type_name, again.message, again.processed) == ("ValueError", "bad value", "yes")
    assert again.remote_traceback is None


def test_the_traceback_crosses_only_when_allowed() -> None:
    try:
        raise ValueError("with a place")
    except ValueError as error:
        open_, closed = fault_of(error, expose_traceback=True), fault_of(error)
    assert "test_faults.py" in (open_.traceback or "")
    assert closed.traceback is None
    assert fault_of(ValueError(), expose_traceback=True).traceback is None


def test_a_remote_error_passed_on_stays_one() -> None:
    again = there_and_back(errors.RemoteError("KeyError", "inner"))
    assert isinstance(again, errors.RemoteError)


@pytest.mark.parametrize("raised", [OutOfStock("nut", 3), Special("nut", 3)])
def test_declared_errors_come_back_as_themselves(raised: OutOfStock) -> None:
    again = there_and_back(raised, (OutOfStock,))
    assert type(again) is OutOfStock
    assert (again.item, again.left) == ("nut", 3)


def test_an_undeclared_type_is_never_built() -> None:
    fault = fault_of(OutOfStock("nut", 3), declared=(OutOfStock,))
    again = error_of(fault, method="w.m")
    assert isinstance(again, errors.RemoteError)
    assert again.type_name == "OutOfStock"


@pytest.mark.parametrize("details", [b"\xc1", b"", b"\x90", b"\x93\x01\x02\x03"])
def test_arguments_that_do_not_fit_become_a_remote_error(details: bytes) -> None:
    fault = Fault(1000, "OutOfStock", "gone", type="OutOfStock", details=details)
    assert isinstance(error_of(fault, declared=(OutOfStock,)), errors.RemoteError)


def test_arguments_without_a_form_become_a_remote_error() -> None:
    again = there_and_back(OutOfStock(object(), 1), (OutOfStock,))  # type: ignore[arg-type]
    assert isinstance(again, errors.RemoteError)


def test_a_declared_type_among_several_is_found() -> None:
    assert type(there_and_back(OutOfStock("nut", 3), (KeyError, OutOfStock))) is OutOfStock


def test_a_peers_nonsense_is_bounded() -> None:
    odd = error_of(Fault(14, "ConnectionLost", "m", processed=99, details=b"\xc1"))
    assert isinstance(odd, errors.ConnectionLost)
    assert odd.processed == "yes"
    assert odd.reason == "m"
    assert isinstance(error_of(Fault(77, "SystemExit", "m")), errors.RemoteError)


def test_a_worker_that_is_unknown_there_is_named_here() -> None:
    again = there_and_back(errors.NoSuchWorker("hashr", ("hasher",)))
    assert isinstance(again, errors.NoSuchWorker)
    assert (again.worker, again.known) == ("hashr", ("hasher",))


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError(2, "No such file", "/secret/place"),
        KeyError("secret"),
        errors.RemoteError("KeyError", "'secret'"),
        errors.ConnectionLost("unix:///secret/place", "by /secret/place"),
        errors.InvalidPayload("$.x", "the handler's result: 'secret'"),
        errors.StreamReset("'secret'"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_discretion_lets_no_path_and_no_value_cross(error: BaseException) -> None:
    fault = fault_of(error, expose_traceback=True)
    assert b"secret" in encode_fault(fault, 65536)
    told = encode_fault(fault, 65536, discreet=True)
    assert b"secret" not in told
    assert type(error_of(decode(told, Fault))) is type(error_of(fault))


def test_discretion_leaves_declared_errors_as_they_are() -> None:
    fault = fault_of(OutOfStock("'nut' in /a/b", 3), declared=(OutOfStock,))
    again = error_of(decode(encode_fault(fault, 65536, discreet=True), Fault), declared=(OutOfStock,))
    assert isinstance(again, OutOfStock)
    assert again.item == "'nut' in /a/b"
