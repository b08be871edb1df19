"""The class list: ids that stay what they are from one retraining to the next."""

from __future__ import annotations

from collections.abc import Iterable

from ..store import uri as uris
from ..store.errors import UserError, wrong
from ..store.filesystem import get_store
from ..store.manifest import find_dataset
from ..store.workspace import Workspace
from .config import CleanConfig


def class_list(labels: Iterable[str], base: Iterable[str]) -> tuple[str, ...]:
    """`base` as it is, then the new labels in sorted order; a class's id is its place."""
    known = list(base)
    return (*known, *sorted(set(labels) - set(known)))


def base_classes(config: CleanConfig, workspace: Workspace, name: str) -> tuple[str, ...]:
    """The list that ids come from: the given file, or the last clean dataset under the same name, or nothing."""
    if config.class_list:
        return read_class_list(config.class_list)
    latest = workspace.latest(name, "clean")
    dataset = find_dataset(latest) if latest else None
    return dataset.manifest.classes if dataset else ()


def read_class_list(uri: str) -> tuple[str, ...]:
    """One class a line; UserError for a missing file, an empty one, or a class that occurs twice."""
    absolute = uris.normalize(uri, "class_list")
    try:
        lines = get_store(absolute).read(absolute).decode("utf-8-sig").splitlines()
    except FileNotFoundError:
        raise wrong("class_list", "a file that is there", uri) from None
    except UnicodeDecodeError:
        raise UserError(f"class_list: expected UTF-8 text in {uri}, found other bytes") from None
    classes = tuple(line.strip() for line in lines if line.strip())
    twice = sorted({c for c in classes if classes.count(c) > 1}) if len(set(classes)) < len(classes) else []
    if twice or not classes:
        raise wrong(
            "class_list", "every class once, one a line", f"{twice[0]!r} twice" if twice else f"no class in {uri}"
        )
    return classes
