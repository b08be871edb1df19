"""Optional dependencies: which extra of imagemill's installs a module that a command does not find."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec

from .errors import UserError

MODULES: dict[str, tuple[str, tuple[str, ...]]] = {
    "torch": ("PyTorch", ("train", "resize")),
    "torchvision": ("torchvision", ("train", "resize")),
    "timm": ("timm", ("train",)),
    "safetensors": ("safetensors", ("train",)),
    "ray": ("Ray", ("resize",)),
    "albumentations": ("albumentations", ("resize", "train")),
    "cleanlab": ("cleanlab", ("train",)),
    "matplotlib": ("matplotlib", ("promote", "train")),
    "jinja2": ("Jinja", ("clean", "promote", "train")),
    "tensorboard": ("TensorBoard", ("train",)),
    "onnx": ("ONNX", ("train",)),
    "onnxscript": ("ONNX Script", ("train",)),
    "onnxruntime": ("ONNX Runtime", ("train",)),
    "kfp": ("the SDK of Kubeflow Pipelines", ("pipelines",)),
    "kfp.kubernetes": ("kfp-kubernetes", ("pipelines",)),
    "kfp_server_api": ("the SDK of Kubeflow Pipelines", ("pipelines",)),
    "hera": ("Hera", ("pipelines",)),
    "docker": ("Docker's client", ("pipelines",)),
    "kubernetes": ("Kubernetes' client", ("pipelines",)),
    "google_crc32c": ("google-crc32c", ("export",)),
    "tensorflow": ("TensorFlow", ("tensorflow",)),
}
"""Module → its product's name, and the extras of pyproject.toml that install it."""

_INSTALLS = {"run": "all", "evaluate": "train", "predict": "train"}
"""Command → the extra that installs all that it needs, where its name is not the command's."""


def require(command: str, modules: Iterable[str]) -> None:
    """Check, before any work is done, that the modules that `command` can't do without are installed.

    Nothing is imported. UserError names the first product that is missing and the extra that installs it.
    """
    for module in modules:
        if find_spec(module) is None:
            raise _missing(module, command)


@contextmanager
def needed_by(command: str, modules: Iterable[str] = ()) -> Iterator[None]:
    """Run a command's work: UserError names the extra for a module that is missing, `modules` before it begins."""
    require(command, modules)
    try:
        yield
    except ModuleNotFoundError as error:
        name = str(error.name)
        module = next((known for known in (name, name.partition(".")[0]) if known in MODULES), "")
        if not module or find_spec(module) is not None:
            raise
        raise _missing(module, command) from None


def _missing(module: str, command: str) -> UserError:
    product, extras = MODULES[module]
    own = _INSTALLS.get(command, command)
    extra = own if own in (*extras, "all") else extras[0]
    return UserError(f"imagemill {command} needs {product}: pip install 'imagemill[{extra}]'")
