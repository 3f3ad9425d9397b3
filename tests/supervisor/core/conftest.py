"""A desk to try the core on: time is a number, processes are words."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from smartipc.ipc.control import ExitFacts
from smartipc.supervisor.core.core import Core
from smartipc.supervisor.core.facts import (
    AppStart,
    BecameReady,
    Exited,
    Fact,
    Spawned,
    Started,
)
from smartipc.supervisor.core.orders import Announce, Answer, EndApp, Order
from smartipc.supervisor.core.slot import InstanceView
from smartipc.supervisor.core.spec import AppSpec, GroupSpec, SupervisorSpec, WorkerSpec

OK = ExitFacts(code=0)
BAD = ExitFacts(code=1)
KILLED = ExitFacts(signal="SIGKILL")


class Desk:
    """One core, its clock, and all that it has ordered."""

    def __init__(
        self, *workers: WorkerSpec, jitter: float = 0.5, groups: tuple[GroupSpec, ...] = (), **supervisor
    ) -> None:
        spec = AppSpec("app", workers, SupervisorSpec(**supervisor), groups=groups)
        self.core = Core(spec, jitter=lambda: jitter)
        self.now = 1000.0
        self.orders: list[Order] = []

    def tell(self, *facts: Fact) -> list[Order]:
        """Tell facts; return what was ordered, announcements apart."""
        orders = [order for fact in facts for order in self.core.handle(fact, self.now)]
        self.orders += orders
        return [order for order in orders if not isinstance(order, Announce)]

    def wait(self, seconds: float) -> list[Order]:
        """Let time pass, every timer at its moment; return what was ordered, announcements apart."""
        until, orders = self.now + seconds, []
        while (due := self.core.next_timer()) is not None and due <= until:
            self.now = max(self.now, due)
            orders += self.core.handle_timer(self.now)
        self.now = until
        self.orders += orders
        return [order for order in orders if not isinstance(order, Announce)]

    def begin(self) -> list[Order]:
        return self.tell(AppStart())

    def __getitem__(self, instance: str) -> InstanceView:
        return self.core.view(instance)

    def states(self) -> str:
        return " ".join(view.state for view in self.core.snapshot())

    def run(self, *instances: str, watched: bool = False) -> list[Order]:
        """Bring spawned lives to running (or ready, where that follows)."""
        orders = []
        for name in instances:
            generation = self[name].generation
            orders += self.tell(Spawned(name, generation, 4000 + generation), Started(name, generation, watched))
        return orders

    def ready(self, *instances: str, watched: bool = False) -> list[Order]:
        orders = []
        for name in instances:
            orders += self.run(name, watched=watched)
            orders += self.tell(BecameReady(name, self[name].generation))
        return orders

    def die(self, instance: str, exit_: ExitFacts = BAD) -> list[Order]:
        return self.tell(Exited(instance, self[instance].generation, exit_))

    def answers(self) -> dict[int, dict[str, str]]:
        answers = [order for order in self.orders if isinstance(order, Answer)]
        assert len({answer.order for answer in answers}) == len(answers), "answered twice"
        return {answer.order: dict(answer.results) for answer in answers}

    def ends(self) -> list[int]:
        return [order.code for order in self.orders if isinstance(order, EndApp)]

    def announced(self, event: str) -> list[Announce]:
        return [order for order in self.orders if isinstance(order, Announce) and order.event == event]

    def path(self, instance: str) -> list[str]:
        return [str(order.to_state) for order in self.announced("instance.state") if order.instance == instance]

    def last(self, instance: str) -> Announce:
        return [order for order in self.announced("instance.state") if order.instance == instance][-1]


@pytest.fixture
def desk() -> Callable[..., Desk]:
    return Desk
