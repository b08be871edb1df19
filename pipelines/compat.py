"""Internals of Kubeflow Pipelines (kfp 2.17) and of Hera (7.1) that are replaced; tests notice when they change."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any


def name_callers_quickly() -> None:
    """Let KFP's tasks find their caller's name without `inspect.stack`, which looks for the source of every frame among
    all modules, for each setting of each pod: more than half of a compilation."""
    from kfp.dsl.pipeline_task import PipelineTask

    def check(self: PipelineTask) -> None:
        if self.container_spec is None:
            raise ValueError(f"{sys._getframe(1).f_code.co_name} can only be used on single-step components")

    PipelineTask._ensure_container_spec_exists = check


@contextlib.contextmanager
def dump_plain_strings() -> Iterator[None]:
    """Let PyYAML write strings in its own style: an import of Hera changes that in the whole process, and a package of
    Kubeflow Pipelines is known by the hash of its text."""
    import yaml

    representers = yaml.Dumper.yaml_representers
    plain: dict[Any, Any] = {str: yaml.representer.SafeRepresenter.represent_str}
    yaml.Dumper.yaml_representers = representers | plain
    try:
        yield
    finally:
        yaml.Dumper.yaml_representers = representers
