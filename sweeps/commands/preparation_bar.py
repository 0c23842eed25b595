"""The progress of `shaping-data prepare`: documents, bytes of text, speed and time left, on standard error."""

import time

from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bar

from pipelines.data.part_schedule import Progress


class PreparationBar:
    """A bar on a terminal; elsewhere only its last state is printed."""

    def __init__(self) -> None:
        self._start = time.monotonic()
        self._bar = Bar(TextColumn("{task.description}"), BarColumn(), console=Console(stderr=True))
        self._task = self._bar.add_task("", total=None)

    def update(self, progress: Progress) -> None:
        """Show a new state."""
        self._bar.start()  # not before: a mistake is only its sentence
        line = progress_line(progress, time.monotonic() - self._start)
        total = progress.expected or None
        self._bar.update(self._task, completed=progress.characters, total=total, description=line)

    def stop(self) -> None:
        """Leave the last state standing."""
        if self._bar.live.is_started:
            self._bar.stop()


def progress_line(progress: Progress, seconds: float) -> str:
    """Returns a state in words, `seconds` after the command began.

    Amounts of text are in characters as bytes; speed is that of this command, without what an earlier one had done.
    """
    amount = _gigabytes(progress.characters)
    speed = progress.fresh / seconds if seconds else 0.0
    left = ""
    if progress.expected is not None:
        amount += f" of about {_gigabytes(progress.expected)}"
        if speed:
            left = f", {_duration((progress.expected - progress.characters) / speed)} left"
    parts = f"{progress.parts:,}/{progress.all_parts:,} parts"
    return f"{progress.documents:,} documents, {amount}, {parts}, {speed / 1e6:.1f} MB/s{left}"


def _gigabytes(characters: float) -> str:
    return f"{characters / 1e9:.1f} GB" if characters >= 1e9 else f"{characters / 1e6:.1f} MB"


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(max(0.0, seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"
