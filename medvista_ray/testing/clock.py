"""A clock that only moves when it is told to."""

from __future__ import annotations


class ManualClock:
    """Seconds that a test decides; call it to read them."""

    def __init__(self, now_s: float = 0.0) -> None:
        self.now_s = now_s

    def __call__(self) -> float:
        """Return the time, in seconds."""
        return self.now_s

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        if seconds < 0:
            raise ValueError(f"time does not run backwards: {seconds}")
        self.now_s += seconds
