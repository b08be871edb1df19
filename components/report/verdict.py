"""Write a verdict in words: what was decided, by how much, and the evidence."""

from __future__ import annotations

from collections.abc import Sequence

from ..dataset.records import PASSING, Guard, Verdict
from ..step.config import METRIC_TITLES

MAX_NAMED = 3
"""Classes or options that a sentence names."""


def write_reason(verdict: Verdict) -> str:
    """Return the sentence for people."""
    is_passing = verdict.verdict in PASSING
    decision = "promoted" if verdict.promoted else "not promoted"
    if verdict.promoted and not is_passing:
        decision += " since promote is always"
    elif is_passing and not verdict.promoted:
        decision += " since promote is never"
    if verdict.gain is None and verdict.combined is None:
        score = "" if verdict.challenger is None else f"{METRIC_TITLES[verdict.metric]} {verdict.challenger:.3f}; "
        return f"{decision}: {score}{verdict.note}"
    parts = [f"{decision}: {', '.join([_describe_gain(verdict), *_describe_guards(verdict.guards)])}"]
    parts += [_describe_decision(verdict), *_describe_differences(verdict), *_describe_evidence(verdict), verdict.note]
    return "; ".join(part for part in parts if part)


def _is_by_validation(verdict: Verdict) -> bool:
    """Return whether the validation scores decided alone."""
    return bool(verdict.validation and verdict.combined and verdict.combined.images == verdict.validation.images)


def _describe_gain(verdict: Verdict) -> str:
    """Return the gain that decides in points of the score, with the images that it was measured on."""
    tested = f"{verdict.images:,} test image{'s' if verdict.images != 1 else ''}"
    if verdict.validation and _is_by_validation(verdict):
        gain, where = verdict.validation.gain, f"{verdict.validation.images:,} validation images"
        low, high = gain - 1.96 * verdict.validation.error, gain + 1.96 * verdict.validation.error
        after = f", for there are only {tested}"
    elif verdict.gain is not None and verdict.interval:
        gain, where, (low, high), after = verdict.gain, tested, verdict.interval, ""
    else:
        return "not compared"
    return f"{_format_change(gain)} on {where} (between {100 * low:+.1f} and {100 * high:+.1f}){after}"


def _format_change(gain: float) -> str:
    points = f"{100 * abs(gain):.1f}"
    if points == "0.0":
        return "equally good"
    return f"{points} point{'s' if points != '1.0' else ''} {'better' if gain > 0 else 'worse'}"


def _describe_guards(guards: Sequence[Guard]) -> list[str]:
    """Return warnings and refusals, the classes together."""
    drops = [guard for guard in guards if guard.option == "max_class_drop"]
    texts = []
    if drops:
        classes = [f"{g.subject!r} from {g.champion:.2f} to {g.challenger:.2f}" for g in drops]
        texts.append((drops[0], f"recall falls in {_join(classes)}"))
    for guard in guards:
        if guard.option == "max_ece_rise":
            text = f"the calibration error rises from {guard.champion:.3f} to {guard.challenger:.3f}"
            texts.append((guard, text))
        elif guard.option == "max_slowdown":
            times = guard.champion / guard.challenger
            rates = f"{guard.challenger:,.0f} images/s, not {guard.champion:,.0f}"
            texts.append((guard, f"it takes {times:.1f} times as long for an image ({rates})"))
    return [
        f"but {text}, beyond {guard.option} {guard.limit:g}" if guard.refuses else f"warning: {text}"
        for guard, text in texts
    ]


def _describe_decision(verdict: Verdict) -> str:
    """Return the rule that decided, where the gain alone does not show it; else an empty text."""
    level = f"one-sided level {verdict.level:.0%}"
    if verdict.rule != "better" and not verdict.combined:
        return "too few images for more than the score itself to decide"
    if verdict.verdict == "worse":
        is_by_shared = verdict.shared and verdict.gain is not None and verdict.gain > verdict.shared.gain
        where = " in the classes that the champion knows" if is_by_shared else ""
        return f"credibly worse{where} ({level})"
    if verdict.verdict == "not_better" and verdict.rule == "better":
        return f"not credibly more than {100 * (verdict.min_gain or 0):.1f} points better ({level})"
    if verdict.verdict == "not_better":
        return "a changed configuration has to be better"
    return "which may be chance" if verdict.verdict == "not_worse" and verdict.gain else ""


def _describe_differences(verdict: Verdict) -> list[str]:
    """Return what differs between the models: images, classes, options."""
    parts = []
    images, before = verdict.train_images, verdict.champion_train_images
    if images and before and images != before:
        change = images / before - 1
        size = f"{abs(change):.0%}" if abs(change) >= 0.005 else f"{abs(images - before):,}"
        parts.append(f"trained on {size} {'more' if change > 0 else 'fewer'} images")
    renamed = [f"{old} → {new}" for old, new in verdict.renamed_classes.items()]
    changes = (("added", verdict.added_classes), ("removed", verdict.removed_classes), ("renamed", renamed))
    for title, classes in changes:
        if classes:
            parts.append(f"classes {title}: {_join(classes)}")
    if verdict.shared:
        text = f"{_format_change(verdict.shared.gain)} on the {verdict.shared.images:,} images of the others"
        parts.append(text)
    if verdict.changed_options:
        options = [f"{c.option} {_format(c.champion)} → {_format(c.challenger)}" for c in verdict.changed_options]
        parts.append(f"changed: {_join(options)}")
    return parts


def _describe_evidence(verdict: Verdict) -> list[str]:
    parts = []
    if verdict.validation and not _is_by_validation(verdict):
        images = f"{verdict.validation.images:,} validation images"
        parts.append(f"{_format_change(verdict.validation.gain)} on {images}")
    if verdict.gain is not None:
        scores = f"{METRIC_TITLES[verdict.metric]} {verdict.challenger:.3f} against {verdict.champion:.3f}"
        parts.append(f"{scores}, {verdict.won} images won and {verdict.lost} lost")
    if verdict.left_out:
        parts.append(f"{verdict.left_out:,} more test images were seen in training")
    return parts


def _format(value: object) -> str:
    return "unset" if value in (None, "") else str(value)


def _join(words: Sequence[str]) -> str:
    """Return the first words, and the number of the others."""
    rest = len(words) - MAX_NAMED
    return ", ".join(words[:MAX_NAMED]) + (f" and {rest} more" if rest > 0 else "")
