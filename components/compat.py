"""Other libraries' internals, each with the version that it was seen in and a test that notices when it changes."""

from __future__ import annotations

import importlib
import sys
from importlib.abc import Loader
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

DYNAMO = ("torch._dynamo", "torch._dynamo.utils")


class _Deferred(ModuleType):
    """A module that is imported when something else than `is_compile_supported` is read from it."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # the import system's own
            raise AttributeError(name)
        _remove_deferred()
        return getattr(importlib.import_module(self.__name__), name)


def import_torchvision() -> None:
    """Import torchvision without `torch._dynamo`, which takes nearly as long as all of torch (1.4 s and 1.6 s).

    torchvision 0.27 to 0.29 (ops/roi_align.py) imports `is_compile_supported` from it, for detection's operators alone.
    """
    if "torchvision" in sys.modules or DYNAMO[0] in sys.modules:
        return
    import torch  # noqa: F401  # its own modules must not meet the deferred ones

    package, utils = (_Deferred(name) for name in DYNAMO)
    package.__path__ = []  # makes it a package, whose modules can be imported
    utils.is_compile_supported = _is_compile_supported  # type: ignore[attr-defined]
    sys.modules |= {module.__name__: module for module in (package, utils)}
    try:
        import torchvision  # noqa: F401
    finally:
        _remove_deferred()


class _PandasBlocker(Loader):
    """Find a pandas that can't be imported: torch's compiler asks only for its spec, and gets one."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        return ModuleSpec(name, self) if name == "pandas" else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        raise ImportError("not wanted in this process")


def hide_pandas() -> None:
    """Let this process do without pandas, which Arrow (26) imports, where it is installed, before it converts its first
    list: a third of a second."""
    sys.meta_path.insert(0, _PandasBlocker())


def has_amx() -> bool:
    """Return whether the CPU multiplies matrices of bfloat16 in hardware (Intel AMX), by torch 2.15's function."""
    import torch

    return bool(getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)())


def run_what_cannot_be_compiled() -> None:
    """Let functions of `torch.compile` that can't be compiled run as they are, with a warning (torch 2.12 to 2.15)."""
    import torch

    torch._dynamo.config.suppress_errors = True


def _remove_deferred() -> None:
    for name in DYNAMO:
        if isinstance(sys.modules.get(name), _Deferred):
            del sys.modules[name]


def _is_compile_supported(device_type: str) -> bool:
    return bool(importlib.import_module(DYNAMO[1]).is_compile_supported(device_type))
