"""Optional dependencies: the extra of imagemill that installs a missing module."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec

from ..storage.errors import UserError

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
    "optuna": ("Optuna", ("tune",)),
    "tensorflow": ("TensorFlow", ("tensorflow",)),
}
"""Module → the library's name, and the extras of pyproject.toml that install it."""

_EXTRA_OF_COMMAND = {"run": "all", "compare": "all", "evaluate": "train", "predict": "train", "export-model": "train"}
"""Command → the extra that installs all its modules, where that has another name."""


def require_modules(command: str, modules: Iterable[str]) -> None:
    """Check, before any work is done, that the modules that `command` requires are installed.

    Nothing is imported. UserError names the first missing library and the extra that installs it.
    """
    for module in modules:
        if find_spec(module) is None:
            raise _missing_module_error(module, command)


@contextmanager
def explain_missing_modules(command: str, modules: Iterable[str] = ()) -> Iterator[None]:
    """Map ModuleNotFoundError within the block to a UserError that names the extra; check `modules` before."""
    require_modules(command, modules)
    try:
        yield
    except ModuleNotFoundError as error:
        name = str(error.name)
        module = next((key for key in (name, name.partition(".")[0]) if key in MODULES), "")
        if not module or find_spec(module) is not None:
            raise
        raise _missing_module_error(module, command) from None


def _missing_module_error(module: str, command: str) -> UserError:
    library, extras = MODULES[module]
    own = _EXTRA_OF_COMMAND.get(command, command)
    extra = own if own in (*extras, "all") else extras[0]
    return UserError(f"imagemill {command} needs {library}: pip install 'imagemill[{extra}]'")
