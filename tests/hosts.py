"""A simulated host, and persons, around the supervisor core: what both machines of random lives have in common."""

from __future__ import annotations

from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import RuleBasedStateMachine

from smartipc.ipc.control import ExitFacts
from smartipc.supervisor.core.core import Core
from smartipc.supervisor.core.facts import ShutdownOrdered
from smartipc.supervisor.core.orders import Announce, Answer, EndApp

LIVES = settings(
    max_examples=100,
    stateful_step_count=50,
    deadline=None,
    database=None,
    phases=(Phase.explicit, Phase.generate, Phase.shrink),  # explaining traces every line: minutes
    suppress_health_check=[HealthCheck.too_slow],
)


class Host(RuleBasedStateMachine):
    """Gives the core its facts and obeys its orders; what a life may do is each machine's own."""

    def surround(self, core: Core) -> None:
        self.core = core
        self.now = 100.0
        self.told: set[tuple[str, int]] = set()  # lives that were stopped, aborted or killed
        self.orders = 0
        self.unanswered: dict[int, tuple[str, ...] | None] = {}
        self.shutdown = False
        self.ends: list[int] = []

    # each machine's own

    def take(self, order) -> None:
        """Obey an order about a life."""
        raise NotImplementedError

    def check(self, announce: Announce) -> None:
        """Check what is announced."""
        raise NotImplementedError

    def anything_there(self) -> bool:
        """Whether a process exists or is being made."""
        raise NotImplementedError

    def make_all(self) -> None:
        """Make every process that is ordered."""
        raise NotImplementedError

    def obey(self, exit_: ExitFacts) -> None:
        """End whatever was told to."""
        raise NotImplementedError

    # what the core wants

    def tell(self, *facts) -> None:
        for fact in facts:
            self.perform(self.core.handle(fact, self.now))

    def perform(self, orders) -> None:
        for order in orders:
            match order:
                case Announce():
                    if order.event == "app.stopping":
                        assert not self.shutdown
                        self.shutdown = True
                    self.check(order)
                case Answer(number, results):
                    names = self.unanswered.pop(number)  # a KeyError here: answered twice or never asked
                    assert names is None or tuple(name for name, _ in results) == names
                case EndApp(code):
                    assert self.shutdown
                    assert not self.anything_there()
                    assert not self.unanswered
                    self.ends.append(code)
                case _:
                    self.take(order)
        assert len(self.ends) <= 1

    def run_timers(self, until: float) -> None:
        """Handle every timer at its moment; `now` does not pass the last one."""
        for _ in range(3000):
            due = self.core.next_timer()
            if due is None or due > until:
                return
            self.now = max(self.now, due)
            self.perform(self.core.handle_timer(self.now))
        raise AssertionError("timers make no progress")

    # what persons do

    def ask(self, make, names: tuple[str, ...] | None = None) -> None:
        """Give an order that is to be answered, about these names if it is about names."""
        self.orders += 1
        self.unanswered[self.orders] = None if names is None else tuple(dict.fromkeys(names))
        self.tell(make(self.orders))

    def teardown(self) -> None:
        """End the app: whatever state it was in, everything comes down and everybody is answered."""
        if not hasattr(self, "core"):
            return
        self.tell(ShutdownOrdered("the test is over"))
        for _ in range(100):
            if self.ends:
                break
            self.make_all()
            self.obey(ExitFacts(signal="SIGTERM"))
            self.run_timers(self.now + 1)
            self.now += 1
        assert len(self.ends) == 1
        assert not self.unanswered
        assert self.core.next_timer() is None
