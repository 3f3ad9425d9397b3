"""Topic patterns: the trie finds what matching one by one finds, and forgets without a trace."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smartipc.ipc.control import Subscription
from smartipc.ipc.routing.subscribers import Subscribers, Targets, key_of
from smartipc.ipc.routing.topics import Trie, matches

tokens = st.sampled_from(["a", "b", "c", "$sys"])
topics = st.lists(tokens, min_size=1, max_size=5).map(".".join)
patterns = st.builds(
    lambda parts, rest: ".".join([*parts, *rest]),
    st.lists(st.sampled_from(["a", "b", "c", "$sys", "*"]), min_size=1, max_size=4),
    st.sampled_from([[], [">"]]),
) | st.just(">")


@pytest.mark.parametrize(
    ("pattern", "topic", "expected"),
    [
        ("a.b", "a.b", True),
        ("a.b", "a.b.c", False),
        ("a.*", "a.b", True),
        ("a.*", "a", False),
        ("a.*", "a.b.c", False),
        ("*.b", "a.b", True),
        ("a.>", "a.b", True),
        ("a.>", "a.b.c", True),
        ("a.>", "a", False),
        (">", "a", True),
        ("*", "a.b", False),
        (">", "$sys.a", False),
        ("*.a", "$sys.a", False),
        ("$sys.>", "$sys.a", True),
        ("a.*", "a.$sys", True),
    ],
)
def test_what_matches(pattern: str, topic: str, expected: bool) -> None:
    trie: Trie[str] = Trie()
    trie.add(pattern, pattern)
    assert matches(pattern, topic) is expected
    assert trie.match(topic) == ([pattern] if expected else [])


@given(st.lists(patterns, max_size=12), topics, st.data())
def test_the_trie_agrees_with_matching_one_by_one(known: list[str], topic: str, data: st.DataObject) -> None:
    trie: Trie[tuple[int, str]] = Trie()
    left = list(enumerate(known))
    for value in left:
        trie.add(value[1], value)
    for value in data.draw(st.lists(st.sampled_from(left), unique=True)) if left else []:
        assert trie.discard(value[1], value)
        left.remove(value)
    assert sorted(trie.match(topic)) == sorted(value for value in left if matches(value[1], topic))
    assert len(trie) == len(left)
    for value in left:
        assert trie.discard(value[1], value)
    assert trie._root.empty
    assert repr(trie) == "<Trie of 0>"


def test_what_is_not_there_cannot_be_discarded() -> None:
    trie: Trie[int] = Trie()
    trie.add("a.b", 1)
    assert not trie.discard("a.b", 2)
    assert not trie.discard("a.c", 1)
    assert not trie.discard("a.>", 1)
    trie.add("a.b.c", 1)
    assert trie.discard("a.b", 1)
    assert trie.match("a.b.c") == [1]


def test_subscribers_come_and_go() -> None:
    one = Subscription("w:0", 1, 1, "t.*", 10)
    two = Subscription("w:1", 1, 1, "t.a", 10, "q")
    three = Subscription("w:0", 2, 1, "t.>", 10, "q")
    known = Subscribers([one])
    assert known.targets("t.a") == Targets((one,))
    known.add(two)
    known.add(three)
    targets = known.targets("t.a")
    assert targets.plain == (one,)
    assert [(name, set(members)) for name, members in targets.queues] == [("q", {two, three})]
    assert (len(known), set(known)) == (3, {one, two, three})
    assert one in known
    assert known.get(key_of(two)) is two
    known.keep("w:0", lambda _instance, generation: generation == 2)
    assert one not in known
    assert "w:0" not in known
    assert known.targets("t.a").plain == ()
    known.remove(key_of(one))
    known.keep("x:0", lambda _instance, _generation: False)
    known.add(Subscription("w:1", 1, 1, "u", 10))
    assert known.targets("t.a").queues == (("q", (three,)),)
    assert repr(known) == "<Subscribers: 2>"
