"""One generation of workers (cached and admin: crews of one): who should live, does, is due.

    vacant -> STARTING -> READY -> DRAINING -> gone
                  |________|_________|-> ABORTED -> KILLED -> gone

Only bookkeeping: no fork, no kill, no clock of its own. The arbiter asks `due(now)` whom to
fork, tells `settled` and `buried` what happened, and gets the next moment to look again.
A child that dies is replaced at once; if it dies again before it lived for a minute, or never
served, after 1, 2, 4 … 30 s, so that one that cannot start does not eat the machine.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from relayd.master.channel import Channel
from relayd.master.checker import Loaded
from relayd.master.frames import Json
from relayd.master.sockets import Bound

BACK_OFF_S: Final = (0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0)
SOUND_LIFE_S: Final = 60.0
MOST_WORKERS: Final = 50


class Life(enum.Enum):
    """Where a child stands."""

    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    ABORTED = "aborted"
    KILLED = "killed"


NEXT: Final[Mapping[Life, frozenset[Life]]] = {
    Life.STARTING: frozenset({Life.READY, Life.DRAINING, Life.ABORTED, Life.KILLED}),
    Life.READY: frozenset({Life.DRAINING, Life.ABORTED, Life.KILLED}),
    Life.DRAINING: frozenset({Life.ABORTED, Life.KILLED}),
    Life.ABORTED: frozenset({Life.KILLED}),
    Life.KILLED: frozenset(),
}


@dataclass(slots=True, eq=False, kw_only=True)
class Child:
    """A living child process.

    row:      its row on the board.
    born_at:  monotonic seconds.
    deadline: monotonic moment at which SIGKILL follows; inf: none.
    told:     it was sent what `life` says (drain); an undelivered packet is sent again.
    reason:   why it cannot serve, in its own words.
    figures:  its last status packet; heard_at: when it came, monotonic seconds.
    """

    pid: int
    kind: str
    number: int
    serial: int
    row: int
    generation: int
    channel: Channel
    born_at: float
    life: Life = Life.STARTING
    deadline: float = math.inf
    told: bool = True
    reason: str = ""
    has_served: bool = False
    figures: dict[str, Json] = field(default_factory=dict)
    heard_at: float = 0.0

    @property
    def name(self) -> str:
        """How logs and people call it."""
        return f"worker {self.number}" if self.kind == "worker" else self.kind

    def move(self, to: Life) -> None:
        """Go on; raises ValueError for a move that is not in the table."""
        if to not in NEXT[self.life]:
            raise ValueError(f"{self.name}: {self.life.value} to {to.value}")
        self.life = to
        self.has_served |= to is Life.READY


@dataclass(slots=True, eq=False)
class Post:
    """A place for one child. due_at: monotonic moment from which it may be filled."""

    number: int
    child: Child | None = None
    failures: int = 0
    due_at: float = 0.0


class Crew:
    """One generation. config: what its children read; listening: what they accept on."""

    def __init__(
        self, kind: str, generation: int, config: Loaded, listening: tuple[Bound, ...], size: int
    ) -> None:
        self.kind = kind
        self.generation = generation
        self.config = config
        self.listening = listening
        self.is_leaving = False
        self.posts: dict[int, Post] = {}
        self._surplus: list[Child] = []
        self.resize(size)

    @property
    def size(self) -> int:
        """How many children it should have."""
        return len(self.posts)

    def children(self) -> Iterator[Child]:
        """Every living child, those on their way out included."""
        yield from (post.child for post in self.posts.values() if post.child is not None)
        yield from self._surplus

    def ready(self) -> list[Child]:
        """Return the children that serve."""
        return [child for child in self.children() if child.life is Life.READY]

    @property
    def is_ready(self) -> bool:
        """True when every post is filled with a child that serves."""
        return all(
            post.child is not None and post.child.life is Life.READY for post in self.posts.values()
        )

    @property
    def is_gone(self) -> bool:
        """True when no child is left."""
        return not any(True for _ in self.children())

    def due(self, now: float) -> list[Post]:
        """Return the posts to be filled now."""
        if self.is_leaving:
            return []
        return [p for p in self.posts.values() if p.child is None and p.due_at <= now]

    def next_due(self) -> float:
        """Return when a post is to be filled next; inf when none is vacant."""
        if self.is_leaving:
            return math.inf
        return min((p.due_at for p in self.posts.values() if p.child is None), default=math.inf)

    def resize(self, size: int) -> list[Child]:
        """Have `size` posts; returns the children that must be told to drain."""
        wanted = max(1, min(size, MOST_WORKERS)) if self.kind == "worker" else 1
        first = 1 if self.kind == "worker" else 0
        leaving: list[Child] = []
        for number in range(first, first + wanted):
            self.posts.setdefault(number, Post(number))
        for number in [n for n in self.posts if n >= first + wanted]:
            child = self.posts.pop(number).child
            if child is not None:
                self._surplus.append(child)
                leaving.append(child)
        return leaving

    def dismiss(self) -> None:
        """Fill no post any more; the generation goes."""
        self.is_leaving = True

    def buried(self, child: Child, now: float) -> float:
        """Take a dead child out; returns the seconds until its post is filled again, -1: never."""
        if child in self._surplus:
            self._surplus.remove(child)
            return -1.0
        post = self.posts[child.number]
        post.child = None
        if self.is_leaving:
            return -1.0
        if child.has_served and now - child.born_at >= SOUND_LIFE_S:
            post.failures = 0
        if child.life is Life.DRAINING:
            # It was told to go (cached, after an upgrade): no failure of its own.
            post.due_at = now
            return 0.0
        delay = BACK_OFF_S[min(post.failures, len(BACK_OFF_S) - 1)]
        post.failures += 1
        post.due_at = now + delay
        return delay

    def adopt(self, child: Child) -> None:
        """Take in a child that lived before this crew was made (after a re-exec)."""
        post = self.posts.get(child.number)
        if post is not None and post.child is None:
            post.child = child
        else:
            self._surplus.append(child)
