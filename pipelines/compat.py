"""Internals of Kubeflow Pipelines (kfp 2.17) and of Hera (7.1) that are replaced; tests notice when they change."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any


def replace_python_in_program() -> None:
    """Let KFP's SubprocessRunner replace `python3` by the interpreter's path in a task's program alone. KFP replaces
    that text in the whole command line, also in a parameter such as a workspace named `python3-photos`."""
    from kfp.local import subprocess_task_handler as handler

    def replace(full_command: list[str], new_executable: str) -> list[str]:
        program = next(
            (i for i, part in enumerate(full_command) if "ephemeral_component.py" in part), len(full_command)
        )
        return [
            part.replace("python3", new_executable) if i <= program else part for i, part in enumerate(full_command)
        ]

    handler.replace_python_executable = replace


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


@contextlib.contextmanager
def replace_docker_tasks(execute: Callable[[Any], int]) -> Iterator[None]:
    """Let `execute` run the tasks of KFP's DockerRunner: given KFP's handler of a task, it returns the exit code.

    KFP's own handler takes a container that is removed before it was asked for its exit code for a success
    (kubeflow/pipelines 13332), names no container, and treats all steps alike.
    """
    from kfp.local import docker_task_handler
    from kfp.local.status import Status

    original = docker_task_handler.DockerTaskHandler

    class Handler(original):  # type: ignore[misc,valid-type]
        def run(self) -> Status:
            return Status.FAILURE if execute(self) else Status.SUCCESS

    docker_task_handler.DockerTaskHandler = Handler
    try:
        yield
    finally:
        docker_task_handler.DockerTaskHandler = original
