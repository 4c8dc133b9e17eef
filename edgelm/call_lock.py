"""CallLock: a lock that serialises calls to one model, in the process that loaded it."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from edgelm.errors import CancelledError, UsageError

_LOOK_S = 0.02  # interval at which a waiting call checks whether it was cancelled


class CallLock:
    """A lock that records its thread and its process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._holder: int | None = None
        self._process = os.getpid()

    @property
    def is_own(self) -> bool:
        """True if a call of this thread is running."""
        return self._holder == threading.get_ident()

    @property
    def is_forked(self) -> bool:
        """True if this process was forked from the one that loaded the model."""
        return self._process != os.getpid()

    @contextmanager
    def take(self, cancelled: Callable[[], bool] = bool) -> Iterator[None]:
        """Wait for the lock and take it.

        Raises:
            UsageError: this thread holds it already, or the process was forked after loading.
            CancelledError: ``cancelled`` returned True while other calls were running.
        """
        if self.is_forked:
            # A lock copied by fork stays locked, and torch's threads do not exist here.
            raise UsageError(
                f"This model was loaded in process {self._process} and used after a fork. Load it "
                "again in this process, or start processes with the method 'spawn'."
            )
        if self.is_own:
            raise UsageError(
                "An answer is still being streamed in this thread; read it to its end or close it "
                "before the next call."
            )
        while not self._lock.acquire(timeout=_LOOK_S):
            if cancelled():
                raise CancelledError("The call was cancelled while it waited for its turn.")
        try:
            self._holder = threading.get_ident()
            yield
        finally:
            self._holder = None
            self._lock.release()

    @contextmanager
    def end(self) -> Iterator[None]:
        """Wait for other threads before closing; not for this thread, nor in a forked child."""
        if self.is_own or self.is_forked:
            yield
        else:
            with self._lock:
                yield
