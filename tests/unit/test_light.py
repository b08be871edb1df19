"""`imagemill --help` answers at once: what is heavy is imported by what needs it."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = (
    "PIL", "albumentations", "boto3", "botocore", "cv2", "docker", "hera", "kfp", "kubernetes", "numpy", "pandas",
    "pyarrow", "ray", "simplejpeg", "timm", "torch", "torchvision", "yaml",
)  # fmt: skip


@pytest.mark.parametrize(
    "arguments",
    [["--help"], *([word, "--help"] for word in ("run", "train", "config", "submit", "doctor", "gc"))],
    ids=str,
)
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    script = (
        "import sys\nfrom imagemill.pipelines.cli.main import main\n"
        f"try:\n    main({arguments!r})\nexcept SystemExit:\n    pass\n"
        f"print(*sorted(set(sys.modules) & set({HEAVY!r})), file=sys.stderr)"
    )
    process = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert "usage: imagemill" in process.stdout
    assert process.stderr.split() == []


@pytest.mark.parametrize("step", ["download", "clean", "resize", "train", "evaluate", "promote"])
def test_a_steps_defaults_are_resolved_without_anything_heavy(step: str) -> None:
    """A step that has nothing to do, or a little, does not wait for torch."""
    script = (
        f"import sys\nfrom imagemill.components.{step} import STEP\n"
        "STEP.config.from_values({})\n"
        f"print(*sorted(set(sys.modules) & set({HEAVY!r})))"
    )
    process = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert process.stdout.split() == []
