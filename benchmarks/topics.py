"""What matching a topic costs among many subscriptions: the trie, beside trying every pattern.

    python benchmarks/topics.py [--subscriptions 10,100,1000,10000]

Every topic is new, so nothing is remembered from an earlier message.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

from smartipc.ipc.control import Subscription
from smartipc.ipc.routing.subscribers import Subscribers
from smartipc.ipc.routing.topics import matches

MESSAGES = 2000
PATTERNS = ("plant.{}.line.*.speed", "plant.{}.>", "plant.{}.line.7.*", "plant.{}.line.7.state")


def build(count: int) -> Subscribers:
    """Return `count` subscriptions of which none matches, and three that do."""
    others = [
        Subscription("w:0", 1, number, PATTERNS[number % 4].format(f"other{number}"), 10) for number in range(count)
    ]
    matching = [Subscription("w:1", 1, number, PATTERNS[number].format("mine"), 10) for number in range(3)]
    return Subscribers([*others, *matching])


def microseconds(look: Callable[[str], int]) -> float:
    """Return the median time of one look-up over several rounds."""
    rounds = []
    for turn in range(5):
        topics = [f"plant.mine.line.7.speed{turn}x{number}" for number in range(MESSAGES)]
        began = time.perf_counter()
        for topic in topics:
            look(topic)
        rounds.append((time.perf_counter() - began) / MESSAGES * 1e6)
    return sorted(rounds)[2]


def main() -> None:
    """Print one row per number of subscriptions."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--subscriptions", default="10,100,1000,10000")
    counts = [int(word) for word in parser.parse_args().subscriptions.split(",")]
    print(f"{'subscriptions':>13} {'trie':>9} {'one by one':>11} {'add + remove':>13}")
    for count in counts:
        known = build(count)
        patterns = [one.pattern for one in known]
        trie = microseconds(lambda topic, known=known: len(known.targets(topic).plain))  # type: ignore[misc]
        sample = [f"plant.mine.line.7.speed{number}" for number in range(max(1, 200_000 // count // 10))]
        began = time.perf_counter()
        for topic in sample:
            sum(1 for pattern in patterns if matches(pattern, topic))
        one_by_one = (time.perf_counter() - began) / len(sample) * 1e6
        extra = Subscription("w:2", 1, 1, "plant.more.>", 10)
        began = time.perf_counter()
        for _ in range(1000):
            known.add(extra)
            known.remove(("w:2", 1, 1))
        change = (time.perf_counter() - began) / 1000 * 1e6
        print(f"{count:>13} {trie:>6.2f} us {one_by_one:>8.1f} us {change:>10.2f} us")


if __name__ == "__main__":
    main()
