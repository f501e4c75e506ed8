"""What was opened in one process does not work in a copy of it."""

from __future__ import annotations

import os

from edgead.runtime.errors import ConfigError


class OwnProcess:
    """Remembers in which process it was made.

    A fork copies locks as they are at that moment and none of the backends' threads: whoever used them in the copy
    would wait indefinitely.
    """

    def __init__(self) -> None:
        self._number = os.getpid()

    @property
    def here(self) -> bool:
        """Whether this is that process."""
        return os.getpid() == self._number

    def require(self, what: str) -> None:
        """Raise `ConfigError` in a copy; ``what`` was opened before the fork, such as ``this inspector``."""
        if not self.here:
            raise ConfigError(
                f"{what} was opened before the process was forked, and works in its own process only; open it in each "
                "worker, or start the workers with multiprocessing's 'spawn'"
            )
