"""How often drift is named without any change, and how large a change is found.

    python tests/benchmarks/drift.py equal [--weeks 500]
    python tests/benchmarks/drift.py changed [--weeks 100]
    python tests/benchmarks/drift.py features [--weeks 500]

Weeks are simulated (`tests/drifting.py`): so many images, of which the champion has seen all but the new ones; nine
measures and ten classes. `equal`: the new images are drawn as the others were. `changed`: they are darker, or have more
of one class. `features`: both, of 256 features in ten groups, with heavy tails. The tables of README.md are printed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from drifting import draw_features, draw_week

from imagemill.components.evaluate.feature_drift import COMPONENTS
from imagemill.components.metrics.drift import ALL, LEVEL, NEW, Change, Comparison, compare_features

MAX_DRIFT = 0.2
SIZES = ((560, 20), (560, 200), (5_000, 50), (5_000, 500), (12_000, 120))
DARKER = (0.25, 0.5, 1.0, 2.0)
MORE = (0.05, 0.1, 0.2, 0.4)
SHIFTS = (0.0, 0.5, 1.0, 2.0)
TRUE_FACTOR = 60
"""A week with so many times the images has the true distance."""


def measure_equal(weeks: int) -> None:
    print("| images, new ones | beyond chance | and distance above 0.1 | above 0.2 | above 0.2, all images |")
    print("|---|---|---|---|---|")
    sums = np.zeros(4)
    rules: tuple[Callable[[Change], bool], ...] = (
        lambda change: change.is_significant,
        lambda change: change.is_drift,
        lambda change: change.is_drift and change.distance > MAX_DRIFT,
        lambda change: change.is_drift and change.distance > MAX_DRIFT and change.scope == ALL,
    )
    for rows, new in SIZES:
        rng = np.random.default_rng([rows, new])
        counts = np.zeros(4)
        for _ in range(weeks):
            changes = draw_week(rng, rows, new).changes
            counts += [any(map(rule, changes)) for rule in rules]
        sums += counts
        print(f"| {rows:,} + {new:,} | {' | '.join(f'{count / weeks:.3f}' for count in counts)} |", flush=True)
    print(f"| together | {' | '.join(f'{total / weeks / len(SIZES):.4f}' for total in sums)} |")


def measure_changed(weeks: int) -> None:
    print("| images, new ones | change of the new images | true distance | mean distance | named | above 0.2 |")
    print("|---|---|---|---|---|---|")
    changes = [("brightness", f"darker by {by:g} spreads", by, 0.0) for by in DARKER]
    changes += [("classes", f"a class of 12% has {12 + 100 * by:.0f}%", 0.0, by) for by in MORE]
    for rows, new in ((560, 20), (560, 200), (12_000, 120)):
        for name, words, darker, more in changes:
            rng = np.random.default_rng([rows, new, int(100 * darker), int(100 * more)])
            true = find_change(draw_week(rng, TRUE_FACTOR * rows, TRUE_FACTOR * new, darker, more), name).distance
            results = []
            for _ in range(weeks):
                change = find_change(draw_week(rng, rows, new, darker, more), name)
                results.append((change.distance, change.is_drift, change.is_drift and change.distance > MAX_DRIFT))
            numbers = " | ".join(f"{value:.2f}" for value in (true, *np.mean(results, 0)))
            print(f"| {rows:,} + {new:,} | {words} | {numbers} |", flush=True)


def measure_features(weeks: int) -> None:
    print("| images, new ones | shift of the new images | mean distance | beyond chance | and above 0.1 |")
    print("|---|---|---|---|---|")
    for rows, new in SIZES:
        for shift in SHIFTS:
            rng = np.random.default_rng([rows, new, int(100 * shift)])
            results = []
            for _ in range(weeks if not shift else max(1, weeks // 10)):
                then, added = draw_features(rng, rows), draw_features(rng, new, shift)
                samples = {ALL: np.concatenate([then, added]), NEW: added}
                changes = compare_features("features", then, samples, COMPONENTS, LEVEL)
                is_beyond = any(change.is_significant for change in changes)
                results.append((changes[1].distance, is_beyond, any(change.is_drift for change in changes)))
            numbers = [f"{value:.3f}" for value in np.mean(results, 0)]
            print(f"| {rows:,} + {new:,} | {shift:g} | {' | '.join(numbers)} |", flush=True)


def find_change(comparison: Comparison, name: str) -> Change:
    """Return the change of the new images."""
    return next(change for change in comparison.changes if (change.name, change.scope) == (name, NEW))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("equal", "changed", "features"))
    parser.add_argument("--weeks", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.what == "equal":
        measure_equal(arguments.weeks or 500)
    elif arguments.what == "features":
        measure_features(arguments.weeks or 500)
    else:
        measure_changed(arguments.weeks or 100)


if __name__ == "__main__":
    main()
