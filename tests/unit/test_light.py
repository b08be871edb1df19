"""`imagemill --help` answers at once: what is heavy is imported by what needs it."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = (
    "PIL", "albumentations", "boto3", "botocore", "cv2", "docker", "hera", "kfp", "kubernetes", "numpy", "pandas",
    "pyarrow", "ray", "simplejpeg", "timm", "torch", "torchvision", "yaml",
)  # fmt: skip


def run(code: str) -> tuple[str, list[str]]:
    """Run Python code in a fresh process; return its output and the heavy modules that it has imported."""
    code += f"\nimport sys\nprint(*sorted(set(sys.modules) & set({HEAVY!r})), file=sys.stderr)"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    return process.stdout, process.stderr.split()


@pytest.mark.parametrize(
    "arguments",
    [["--help"], *([word, "--help"] for word in ("run", "train", "config", "submit", "doctor", "gc"))],
    ids=str,
)
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    script = (
        f"from imagemill.pipelines.cli.main import main\ntry:\n    main({arguments!r})\nexcept SystemExit:\n    pass"
    )
    output, heavy = run(script)
    assert "usage: imagemill" in output and heavy == []


@pytest.mark.parametrize("step", ["download", "clean", "resize", "train", "evaluate", "promote"])
def test_a_steps_defaults_are_resolved_without_anything_heavy(step: str) -> None:
    """A step that has nothing to do, or a little, does not wait for torch."""
    assert run(f"from imagemill.components.{step} import STEP\nSTEP.config.from_values({{}})") == ("", [])
