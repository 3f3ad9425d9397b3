"""Contracts are checked when they are written, not when they are used."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest

from smartipc.ipc.contracts import Channel, Method, Stream, Topic, check_pattern


def test_a_method_keeps_what_it_was_given() -> None:
    method = Method("hasher.hash_file", str, bytes, timeout=5, idempotent=True, errors=(ValueError,))
    assert (method.name, method.request, method.reply) == ("hasher.hash_file", str, bytes)
    assert (method.timeout, method.idempotent, method.errors) == (5, True, (ValueError,))


def test_defaults_are_a_30_second_timeout_and_no_retries() -> None:
    method = Method("a.b", int, int)
    assert (method.timeout, method.idempotent, method.errors) == (30, False, ())


def test_contracts_are_frozen_and_hashable() -> None:
    method = Method("a.b", int, int)
    with pytest.raises(dataclasses.FrozenInstanceError):
        method.timeout = 3  # type: ignore[misc]
    assert {method: 1}[Method("a.b", int, int)] == 1


@pytest.mark.parametrize("name", ["", "a b", ".a", "a.", "a..b", "9a", "a.b\n", "a" * 300])
def test_bad_method_names_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="not a valid method name"):
        Method(name, int, int)


def test_names_are_strings() -> None:
    with pytest.raises(TypeError, match="must be a str, not int"):
        Method(7, int, int)  # type: ignore[arg-type]


@pytest.mark.parametrize("timeout", [0, -1, float("nan")])
def test_a_timeout_is_positive(timeout: float) -> None:
    with pytest.raises(ValueError, match="must be positive"):
        Method("a.b", int, int, timeout=timeout)


@pytest.mark.parametrize("name", ["", "a.*", "a.>", "a b", "a..b", "$sys.x"])
def test_bad_topic_names_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="topic"):
        Topic(name, int)


@pytest.mark.parametrize("pattern", ["a", "a.b", "*", ">", "a.*.c", "a.>", "*.>"])
def test_patterns(pattern: str) -> None:
    assert check_pattern(pattern) == pattern


@pytest.mark.parametrize("pattern", ["", "a.", "a.>.b", "a*", "a.b>", "a..b", "x." * 200 + "y"])
def test_bad_patterns_are_refused(pattern: str) -> None:
    with pytest.raises(ValueError, match="pattern"):
        check_pattern(pattern)


@pytest.mark.parametrize("errors", [ValueError, (int,), ("ValueError",), None])
@pytest.mark.parametrize(
    "declare",
    [
        lambda errors: Method("m", int, int, errors=errors),
        lambda errors: Stream("m", int, int, errors=errors),
        lambda errors: Channel("m", send=int, receive=int, errors=errors),
    ],
)
def test_errors_are_exception_types(declare: Callable[[object], object], errors: object) -> None:
    with pytest.raises(TypeError, match="errors of m must be a tuple of exception types"):
        declare(errors)


def test_a_method_has_a_finite_timeout() -> None:
    with pytest.raises(ValueError, match="must be positive seconds, got inf"):
        Method("m", int, int, timeout=float("inf"))
