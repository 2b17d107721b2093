"""Progress on a terminal: one bar per long piece of work, one line per finished stage. Knows no stage's insides."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

Advance = Callable[[int, int, str], None]  # done, total, text beside the bar
_LOG_EVERY_S = 15.0


class Reporter:
    """Shows bars where a person looks, and a line every 15 seconds where output goes to a file."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True)

    def say(self, text: str) -> None:
        """Print one line."""
        self.console.print(text, highlight=False)

    @contextmanager
    def bar(self, title: str) -> Iterator[Advance]:
        """Show one piece of work; yields what moves it."""
        if not self.console.is_terminal:
            yield self._line_writer(title)
            return
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}"),
        )
        with Progress(*columns, console=self.console, transient=True) as progress:
            task = progress.add_task(title, total=None, note="")

            def advance(done: int, total: int, note: str = "") -> None:
                progress.update(task, completed=done, total=total, note=note)

            yield advance

    def _line_writer(self, title: str) -> Advance:
        last = time.monotonic()

        def advance(done: int, total: int, note: str = "") -> None:
            nonlocal last
            now = time.monotonic()
            if now - last >= _LOG_EVERY_S:
                last = now
                self.say(f"{title}: {done} of {total} {note}".rstrip())

        return advance
