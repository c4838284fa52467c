"""Drives a session in a thread of its own: commands as they come, steps as the clock has them."""

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from queue import Empty, Queue
from threading import Thread
from typing import Any, Protocol

from visuomotor.errors import VisuomotorError
from visuomotor.studio.session import Message

LOG = logging.getLogger("visuomotor.studio")
LATE = 1.0
"""Seconds behind its clock after which a rollout gives up catching up."""


class Gone(Exception):
    """The page has left."""


class Driven(Protocol):
    """What a tab shows; `Session` says what each of these is."""

    running: bool

    @property
    def period(self) -> float: ...

    @property
    def waiting(self) -> bool: ...

    def handle(self, message: Mapping[str, Any]) -> Iterator[Message]: ...

    def advance(self) -> Iterator[Message]: ...

    def frame(self) -> Message: ...


class Driver:
    """One tab's thread.

    Args:
        session: What to drive; nobody else may touch it meanwhile.
        tell: Takes what the page is to be told, from the thread. It may wait, and so slows the rollout down to what
            the page can take; `Gone` from it ends the thread.
        late: Seconds behind its clock after which the session gives up catching up; of -s, its steps are s apart or
            more.
        done: Called by the thread when it ends.
    """

    def __init__(
        self,
        session: Driven,
        tell: Callable[[Message], None],
        late: float = LATE,
        done: Callable[[], None] = lambda: None,
    ):
        self._session, self._tell, self._late, self._done = session, tell, late, done
        self._commands: Queue[dict[str, Any] | None] = Queue()
        self._due = time.monotonic()
        self._thread = Thread(target=self._run, name="studio session", daemon=True)
        self._thread.start()

    def command(self, message: dict[str, Any]) -> None:
        """Has the session handle a message soon."""
        self._commands.put(message)

    def close(self) -> None:
        """Ends the thread after what it is at."""
        self._commands.put(None)

    def _run(self) -> None:
        try:
            while self._turn():
                pass
        except Gone:
            pass
        finally:
            self._done()

    def _turn(self) -> bool:
        """Handles one command, or takes one step if that comes first; False at the end."""
        session = self._session
        rest = max(self._due - time.monotonic(), 0.0) if session.waiting else None
        try:
            message = self._commands.get(timeout=rest)
        except Empty:
            self._due = max(self._due + session.period, time.monotonic() - self._late)
            if not self._do(session.advance):
                session.running = False  # a policy that cannot act is not asked ten times a second
            return True
        if message is None:
            return False
        rested = not session.waiting
        self._do(lambda: session.handle(message))
        if rested:
            self._due = time.monotonic()
        return True

    def _do(self, act: Callable[[], Iterable[Message]]) -> bool:
        """Whether it went well; what did not, the page is told in one line."""
        try:
            for message in act():
                self._tell(message)
        except Gone:
            raise
        except Exception as error:  # of whatever kind: a page that hears nothing more would wait for ever
            text = str(error)
            if not isinstance(error, VisuomotorError):
                LOG.exception("studio session")
                text = f"unexpected {type(error).__name__}: {text}"
            self._tell({"type": "error", "text": " ".join(text.split())})
            self._tell(self._session.frame())
            return False
        return True
