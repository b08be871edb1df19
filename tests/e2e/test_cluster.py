"""pytest's way to the same: with KUBECONFIG and IMAGEMILL_CLUSTER set, everything is run on that cluster."""

from __future__ import annotations

import os

import pytest

from . import __main__ as command


def test_on_the_cluster() -> None:
    if not os.environ.get("KUBECONFIG"):
        pytest.skip(command.NO_CONFIG)
    if not os.environ.get("IMAGEMILL_CLUSTER"):
        pytest.skip("IMAGEMILL_CLUSTER is not set: it names the cluster file; or use tests/e2e/run --cluster FILE")
    assert command.main([]) == 0
