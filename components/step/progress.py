"""Progress output of a step: one complete line at a time, which pipes, pods and log collectors keep intact."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from .config import METRIC_TITLES


def say(step: str, text: str) -> None:
    """Print one line of a step to stderr: `[clean] 737 rows in · 716 kept · 21 rejected`."""
    line = " ".join(text.splitlines())  # a class may be named with a line break: it must not forge a line
    print(f"[{step}] {line}", file=sys.stderr, flush=True)


@dataclass
class Progress:
    """A counter of finished units that prints a line every few seconds: done, rate, time left. Thread-safe.

    `total` is 0 when it is not known beforehand (a compressed archive).
    """

    step: str
    unit: str = "images"
    total: int = 0
    every_s: float = 3.0
    done: int = 0
    started: float = field(default_factory=time.monotonic)
    _last_line_at: float = field(default_factory=time.monotonic)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, number: int = 1, note: str = "") -> None:
        with self._lock:
            self.done += number
            now = time.monotonic()
            if now - self._last_line_at < self.every_s:
                return
            self._last_line_at = now
            line = self.line(note)
        say(self.step, line)

    def leave_out(self, number: int) -> None:
        """Leave out units that an earlier attempt finished."""
        with self._lock:
            self.total -= number

    def restart(self) -> None:
        """Start the clock again after a preparation."""
        self.started = time.monotonic()

    def line(self, note: str = "") -> str:
        rate = self.rate()
        parts = [f"{self.done:,}/{self.total:,} {self.unit}" if self.total else f"{self.done:,} {self.unit}"]
        parts.append(f"{rate:,.0f} {self.unit}/s")
        if note:
            parts.append(note)
        if self.total and rate > 0:
            parts.append(f"{format_duration((self.total - self.done) / rate)} left")
        return " · ".join(parts)

    def rate(self) -> float:
        """Return units per second since the start."""
        return self.done / self.age()

    def age(self) -> float:
        """Return seconds since the start, never 0."""
        return max(time.monotonic() - self.started, 1e-3)


def format_duration(seconds: float) -> str:
    """Format seconds as `8 s`, `3 min 20 s`, `2 h 5 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def format_scores(scores: Mapping[str, float], intervals: Mapping[str, Sequence[float]] | None = None) -> str:
    """Format top-1 and macro-F1, as far as they are there, as `top-1 0.924 (0.861 to 0.959) · macro-F1 0.925`.

    Every line that names these two scores of a model is made here, of the same numbers.
    """
    parts = []
    for metric in ("top1", "macro_f1"):
        if (value := scores.get(metric)) is not None:
            bounds = (intervals or {}).get(metric)
            parts.append(
                f"{METRIC_TITLES[metric]} {value:.3f}" + (f" ({bounds[0]:.3f} to {bounds[1]:.3f})" if bounds else "")
            )
    return " · ".join(parts)


def format_size(size: float) -> str:
    """Format bytes as `812 B`, `4.2 MB`: decimal units, as object stores bill them."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"
