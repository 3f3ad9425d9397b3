"""The error tree: facts are attributes, sentences name them, pickles bring both back."""

from __future__ import annotations

import pickle

import pytest

from smartipc.ipc import errors

EXAMPLES = [
    (errors.ConnectFailed("unix:///x", "no such file"), "cannot connect to unix:///x: no such file"),
    (errors.LocalProtocolError("already closed"), "already closed"),
    (errors.RemoteProtocolError("bad preface"), "bad preface"),
    (errors.FrameTooLarge(20, 10, "message"), "message of 20 bytes exceeds the limit of 10 bytes"),
    (errors.CallError(method="a.b", instance="a:1"), "a.b on a:1 failed (processed: maybe)"),
    (errors.ConnectionLost("a:0", "reset", processed="no"), "connection to a:0 lost: reset (processed: no)"),
    (errors.RequestTimeout(1.5, method="a.b"), "no reply to a.b within 1.5 s (processed: maybe)"),
    (
        errors.RequestTimeout(None, "a is starting", method="a.b"),
        "no reply to a.b before its deadline: a is starting (processed: maybe)",
    ),
    (errors.RequestCancelled(method="a.b"), "a.b was cancelled"),
    (errors.NoSuchWorker("hashr", ["hasher"]), "no worker named 'hashr'; known: hasher"),
    (errors.NoSuchMethod("a.x", instance="a:0"), "no method 'a.x' on a:0; known: none"),
    (errors.WorkerDied("a:0", None, "SIGKILL", True, "yes"), "killed by SIGKILL, probably out of memory"),
    (errors.WorkerDied("a:0", 3, method="a.b"), "a:0 died during a.b: exit code 3 (processed: maybe)"),
    (errors.WorkerDied("a:0"), "a:0 died: exit facts unknown (processed: maybe)"),
    (errors.InvalidPayload("$.size", "Expected `int`", method="a.b"), "at $.size: Expected `int`"),
    (errors.RemoteError("ValueError", "bad", "Traceback…", method="a.b"), "a.b raised ValueError: bad"),
    (errors.Overloaded(method="a.b"), "a.b refused: overloaded"),
    (errors.RateLimited(0.5, method="a.b"), "rate limit, retry after 0.5 s"),
    (errors.CircuitOpen(10, method="a.b"), "circuit open, retry after 10 s"),
    (errors.PermissionDenied(method="a.b"), "a.b denied"),
    (errors.AuthenticationFailed(), "authentication failed"),
    (errors.SlowConsumer("t.x", 4), "subscription to t.x closed: reader too slow, 4 messages missed"),
    (errors.StreamReset("gone"), "stream reset: gone"),
    (errors.StreamReset(), "stream reset"),
    (errors.EndOfStream(), "end of stream"),
    (errors.OrderFailed({"a:0": "it failed", "a:1": "x"}), "a:0: it failed; a:1: x"),
    (errors.ConfigError(["a.yaml:1:2: x", "a.yaml:3:4: y"]), "a.yaml:1:2: x\na.yaml:3:4: y"),
]


@pytest.mark.parametrize(("error", "sentence"), EXAMPLES, ids=lambda value: type(value).__name__)
def test_the_sentence_names_the_facts(error: errors.SmartIpcError, sentence: str) -> None:
    assert sentence in str(error)


@pytest.mark.parametrize("error", [error for error, _ in EXAMPLES], ids=lambda error: type(error).__name__)
def test_pickling_keeps_type_facts_and_sentence(error: errors.SmartIpcError) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert again.__dict__ == error.__dict__
    assert str(again) == str(error)
    assert repr(again) == repr(error)


def test_a_timeout_is_a_timeout_error() -> None:
    assert isinstance(errors.RequestTimeout(1.0), TimeoutError)


def test_refusals_say_that_nothing_ran() -> None:
    for error in (errors.Overloaded(), errors.RateLimited(1), errors.NoSuchMethod("a.b"), errors.PermissionDenied()):
        assert error.processed == "no"


def test_every_error_is_in_the_tree_and_in_the_examples() -> None:
    known = {type(error) for error, _ in EXAMPLES}
    missing = [
        cls.__name__
        for cls in vars(errors).values()
        if isinstance(cls, type) and issubclass(cls, errors.SmartIpcError) and cls not in known
    ]
    assert missing == ["SmartIpcError", "ProtocolError"]
