"""Parameters that may be a path of this machine, which no pod of a cluster sees."""

from __future__ import annotations

from typing import Any

from ..components.store import uri as uris
from ..components.store.errors import wrong
from ..components.train.config import TrainConfig
from .parameters import RunParameters

PATHS = ("source", "annotations", "class_list", "weights", "copy_pipeline", "augment_pipeline", "backgrounds")
"""Parameters that are read and may be a path."""


def is_path(parameters: RunParameters, name: str, value: Any) -> bool:
    """Whether that value of one of `PATHS` is a path, rather than a URI of elsewhere or the name of something known."""
    if not isinstance(value, str) or not value or uris.scheme(value) not in ("", "file"):
        return False
    if name == "weights":
        train = parameters.config("train")
        return isinstance(train, TrainConfig) and not train.weights_are_named
    return not name.endswith("_pipeline") or "/" in value or "." in value  # else one of those known by name


def refuse_paths(parameters: RunParameters) -> None:
    """UserError for a parameter that is a path: the steps run in pods."""
    for step, values in (("", parameters.pipeline), *parameters.sections.items()):
        for name, value in values.items():
            if name in PATHS and is_path(parameters, name, value):
                places = "s3://… or http(s)://…" if name in ("source", "annotations") else "s3://…"
                raise wrong(parameters.place(name, step), f"{places}: the pods don't see this machine's files", value)
