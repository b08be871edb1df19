"""`imagemill doctor` on a cluster as an overlay of k8s/ makes it; modules that want the fixtures bind their names."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from cluster_api import K8S, ClusterApi, installed, serving
from kfp_server import KfpService
from kfp_server import serving as serving_kfp

from imagemill.pipelines.cli import main as cli
from imagemill.pipelines.kfp import client as kfp_client

Json = dict[str, Any]
IMAGES = ("imagemill-cpu:dev", "imagemill-ray:dev", "imagemill-gpu:dev")
NAMED = dict(zip(("cpu", "ray", "gpu"), IMAGES, strict=True)) | {"tags_allowed": True}
NAMESPACES = {"kind": "imagemill", "kubeflow": "kubeflow", "kubeflow-profile": "kubeflow-user-example-com"}


@dataclass
class CommandResult:
    code: int
    out: str
    err: str

    @property
    def findings(self) -> dict[str, list[Json]]:
        """Findings by check."""
        findings_by_check: dict[str, list[Json]] = {}
        for finding in json.loads(self.out)["findings"]:
            findings_by_check.setdefault(finding["check"], []).append(finding)
        return findings_by_check

    def states(self, state: str) -> set[str]:
        return {check for check, findings in self.findings.items() for finding in findings if finding["state"] == state}


@dataclass
class Doctor:
    """A cluster of an overlay, and the command that looks at it."""

    overlay: str
    api: ClusterApi
    kfp: KfpService
    folder: Path
    capsys: pytest.CaptureFixture[str]

    @property
    def namespace(self) -> str:
        return NAMESPACES[self.overlay]

    def __call__(self, *words: str, file: Json | None = None) -> CommandResult:
        """Run it with the overlay's cluster file, of which `file` changes parts."""
        name = (
            K8S / "base" / "cluster.yaml"
            if self.overlay == "kind"
            else K8S / "overlays" / self.overlay / "cluster.yaml"
        )
        values = yaml.safe_load(name.read_text())
        values["images"] = NAMED
        values = merged(values, {"steps": {"train": {"gpu": 0}, "evaluate": {"gpu": 0}}})
        (self.folder / "cluster.yaml").write_text(yaml.safe_dump(merged(values, file or {})))
        with serving(self.api, self.folder) as kubeconfig, serving_kfp(self.kfp) as kfp:
            os.environ["KUBECONFIG"] = str(kubeconfig)
            words = ("--cluster", str(self.folder / "cluster.yaml"), *words)
            host = () if self.overlay == "kind" or "--host" in words else ("--host", kfp.url)
            code = cli.main(["doctor", "--json", *words, *host])
        printed = self.capsys.readouterr()
        return CommandResult(code, printed.out, printed.err)


def merged(base: Json, changes: Json) -> Json:
    both = {key: merged(base[key], value) if isinstance(value, dict) and isinstance(base.get(key), dict) else value
            for key, value in changes.items()}  # fmt: skip
    return {**base, **both}


@pytest.fixture
def make(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[[str], Doctor]:
    for name in [name for name in os.environ if name.startswith(("KF_PIPELINES", "AWS_", "KUBE"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("KUBECONFIG", "")  # so that it is put back
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setattr(kfp_client, "RETRY_S", 0.5)

    def doctor(overlay: str) -> Doctor:
        kfp = KfpService(multi_user=overlay == "kubeflow-profile")
        return Doctor(overlay, installed(overlay, IMAGES), kfp, tmp_path, capsys)

    return doctor


@pytest.fixture
def kind(make: Callable[[str], Doctor]) -> Doctor:
    return make("kind")


@pytest.fixture
def kubeflow(make: Callable[[str], Doctor]) -> Doctor:
    return make("kubeflow")
