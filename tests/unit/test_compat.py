"""The internals of other libraries that are used are still what they were."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from kfp.dsl import pipeline_task
from kfp.dsl.pipeline_task import PipelineTask

from imagemill.components import compat
from imagemill.pipelines.compat import name_callers_quickly


def run(code: str) -> None:
    """Run Python code in a fresh process, which has to succeed: imports of this one would hide what is tested."""
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr


def test_torch_dynamo_is_imported_on_first_use_only() -> None:
    """Fails with a torchvision that imports more of it: then `import_torchvision` is of no use, and goes."""
    run(
        "import sys\n"
        "import torch\n"
        "from imagemill.components.compat import import_torchvision\n"
        "import_torchvision()\n"
        "from torchvision.models import get_model\n"
        "get_model('resnet18')\n"
        "assert 'torch._dynamo' not in sys.modules and 'torch._dynamo.utils' not in sys.modules\n"
        "from torchvision.ops import roi_align\n"
        "from torchvision.ops.roi_align import is_compile_supported\n"
        "boxes = torch.tensor([[0.0, 0.0, 0.0, 4.0, 4.0]])\n"
        "assert roi_align(torch.ones(1, 1, 8, 8), boxes, 2).shape == (1, 1, 2, 2)\n"
        "from torch._dynamo.utils import is_compile_supported as own\n"
        "assert is_compile_supported('cpu') == own('cpu')\n"
        "assert torch.compile(lambda x: x + 1, backend='eager')(torch.ones(1)).item() == 2\n"
    )


def test_deferred_module_is_imported_when_needed() -> None:
    """A later torchvision might import more: the deferred module is replaced by the real one."""
    run(
        "import os, sys\n"
        "from imagemill.components import compat\n"
        "import torch\n"
        "for statement in ('import torch._dynamo; torch._dynamo.config', 'from torch._dynamo import disable'):\n"
        "    if not (child := os.fork()):\n"
        "        package, utils = (compat._Deferred(name) for name in compat.DYNAMO)\n"
        "        package.__path__ = []\n"
        "        sys.modules |= {module.__name__: module for module in (package, utils)}\n"
        "        exec(statement)\n"
        "        assert type(sys.modules['torch._dynamo']).__name__ == 'module'\n"
        "        os._exit(0)\n"
        "    assert os.waitpid(child, 0)[1] == 0, statement\n"
    )


def test_torch_knows_amx_as_its_public_function_does() -> None:
    assert compat.has_amx() == torch.cpu._is_amx_tile_supported() == torch.cpu.get_capabilities().get("amx_tile", False)


def test_functions_that_cannot_be_compiled_run_uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(graph: object, inputs: object) -> Callable[..., object]:
        raise RuntimeError("no such operation")

    monkeypatch.setattr(torch._dynamo.config, "suppress_errors", False)
    compat.run_what_cannot_be_compiled()
    assert torch.compile(lambda x: x + 1, backend=refuse)(torch.ones(1)).item() == 2


@pytest.mark.parametrize("hidden", [True, False])
def test_arrow_imports_pandas_for_a_list_unless_it_is_hidden(hidden: bool) -> None:
    """Fails with an Arrow that does without: then `hide_pandas` is of no use, and goes."""
    run(
        "import sys\n"
        "import pyarrow as pa\n"
        "from imagemill.components.compat import hide_pandas\n"
        f"if {hidden}:\n"
        "    hide_pandas()\n"
        "assert pa.array(['a', None]).to_pylist() == ['a', None]\n"
        f"assert ('pandas' in sys.modules) is not {hidden}\n"
    )


def test_hera_does_not_change_kfp_packages() -> None:
    run(
        "import yaml\n"
        "from imagemill.pipelines.compat import dump_plain_strings\n"
        "def dump():\n"
        "    with dump_plain_strings():\n"
        "        return yaml.dump_all([{'program': 'a\\nb\\n', 'count': 1}])\n"
        "text = yaml.dump_all([{'program': 'a\\nb\\n', 'count': 1}])\n"
        "assert dump() == text\n"
        "import hera.workflows\n"
        "changed = yaml.dump_all([{'program': 'a\\nb\\n', 'count': 1}])\n"
        "assert changed != text, 'Hera leaves PyYAML alone by now'\n"
        "assert dump() == text\n"
        "assert yaml.dump_all([{'program': 'a\\nb\\n', 'count': 1}]) == changed, 'Hera\\'s own is still there'\n"
    )


def test_kfp_tasks_name_the_caller_without_reading_sources(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "inspect.stack()" in Path(pipeline_task.__file__).read_text(), "KFP does it quickly by now"
    monkeypatch.setattr(PipelineTask, "_ensure_container_spec_exists", PipelineTask._ensure_container_spec_exists)
    name_callers_quickly()
    task = Mock(spec=PipelineTask, container_spec=None)
    task._ensure_container_spec_exists = PipelineTask._ensure_container_spec_exists.__get__(task)
    with pytest.raises(ValueError, match="set_cpu_limit can only be used"):
        PipelineTask.set_cpu_limit.__wrapped__(task, "1")  # type: ignore[attr-defined]
