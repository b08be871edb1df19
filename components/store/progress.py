"""What a step says while it works: whole lines, so that they survive pipes, pods and log collectors."""

from __future__ import annotations

import sys
import threading
import time
from dataclasses import dataclass, field


def say(step: str, text: str) -> None:
    """One line on stderr that belongs to a step: `[clean] 737 rows in · 716 kept · 21 rejected`."""
    line = " ".join(text.splitlines())  # a class may be named with a line break: it must not forge a line
    print(f"[{step}] {line}", file=sys.stderr, flush=True)


@dataclass
class Progress:
    """Counts work and says how it goes every few seconds: done, rate, time left. Safe to use from threads.

    `total` is 0 when it can't be known beforehand (a compressed archive).
    """

    step: str
    unit: str = "images"
    total: int = 0
    every_s: float = 3.0
    done: int = 0
    started: float = field(default_factory=time.monotonic)
    _said: float = field(default_factory=time.monotonic)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, number: int = 1, note: str = "") -> None:
        with self._lock:
            self.done += number
            now = time.monotonic()
            if now - self._said < self.every_s:
                return
            self._said = now
            line = self.line(note)
        say(self.step, line)

    def leave_out(self, number: int) -> None:
        """So many were done by an earlier try."""
        with self._lock:
            self.total -= number

    def restart(self) -> None:
        """Take the time from now on: what came before was preparation."""
        self.started = time.monotonic()

    def line(self, note: str = "") -> str:
        rate = self.rate()
        parts = [f"{self.done:,}/{self.total:,} {self.unit}" if self.total else f"{self.done:,} {self.unit}"]
        parts.append(f"{rate:,.0f} {self.unit}/s")
        if note:
            parts.append(note)
        if self.total and rate > 0:
            parts.append(f"{duration((self.total - self.done) / rate)} left")
        return " · ".join(parts)

    def rate(self) -> float:
        """Units per second since the start."""
        return self.done / self.age()

    def age(self) -> float:
        """Seconds since the start, never 0."""
        return max(time.monotonic() - self.started, 1e-3)


def duration(seconds: float) -> str:
    """`8 s`, `3 min 20 s`, `2 h 5 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def size(number: float) -> str:
    """`812 B`, `4.2 MB`: decimal units, as object stores bill them."""
    for unit in ("B", "kB", "MB", "GB"):
        if number < 1000:
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1000
    return f"{number:.1f} TB"
