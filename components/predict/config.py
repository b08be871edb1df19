"""Configuration of a prediction."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..dataset.manifest import MANIFEST, Dataset, find_dataset, normalize_dataset_uri, read_dataset
from ..dataset.workspace import Workspace
from ..engine.ray_connection import is_cluster_address
from ..step.progress import say
from ..storage import uri as uris
from ..storage.errors import UserError, wrong

VERSION = 1
"""Raised when nodes of a Ray cluster with other code must not predict: when tasks, or what they return, change."""
DEVICES = ("auto", "cpu", "cuda")
OUTPUTS = (".parquet", ".csv")


@dataclass(frozen=True)
class PredictConfig:
    """The images to classify (files, folders, s3:// URIs, or `-` for a list on stdin), the model, and the form of the
    output.

    `model`: URI of a model or its manifest; empty for the champion of `name` (which may be empty if only one name has
    one) in `workspace`. `output`: a local .parquet or .csv file; empty for none. `ray_address`: the Ray cluster that
    does it; empty for this process.
    """

    images: tuple[str, ...]
    model: str = ""
    workspace: str = ""
    name: str = ""
    top: int = 5
    device: str = "auto"
    batch_size: int = 32
    output: str = ""
    json: bool = False
    ray_address: str = ""

    def check(self) -> None:
        """Raise UserError for an invalid value."""
        if not self.images or not all(image.strip() for image in self.images):
            raise wrong("IMAGE", "files, folders, s3:// URIs, or - for a list of them on stdin", list(self.images))
        if self.images.count("-") > 1:
            raise wrong("IMAGE", "- once, for there is one stdin", list(self.images))
        for flag, value in (("--name", self.name), ("--workspace", self.workspace)):
            if self.model and value:
                raise wrong(flag, "nothing beside --model, for it says whose champion is meant", value)
        if self.device not in DEVICES:
            raise wrong("--device", f"one of {', '.join(DEVICES)}", self.device)
        for flag, number in (("--top", self.top), ("--batch-size", self.batch_size)):
            if number < 1:
                raise wrong(flag, "a whole number of at least 1", number)
        self._check_output()
        if self.ray_address and not is_cluster_address(self.ray_address):
            expected = "ray://host:10001, or auto or host:6379 from a node of the cluster, whose jobs can't write here"
            raise wrong("--ray-address", expected, uris.redact(self.ray_address))
        if self.ray_address and self.device == "cuda":
            raise wrong("--device", "cpu or auto with --ray-address, where each task takes one core", self.device)

    def _check_output(self) -> None:
        if not self.output:
            return
        if uris.scheme(self.output) or not self.output.lower().endswith(OUTPUTS):
            raise wrong("--output", f"a file of this machine that ends in {' or '.join(OUTPUTS)}", self.output)
        path = Path(self.output).expanduser()
        if path.is_dir() or not path.absolute().parent.is_dir():
            raise wrong("--output", "a file in a folder that is there", self.output)

    def find_model(self) -> Dataset:
        """Return the model's dataset; UserError if there is none."""
        if not self.model:
            return self._find_champion()
        model = find_dataset(normalize_dataset_uri(self.model, "--model"))
        if model is None:
            raise wrong("--model", f"the URI of a model (a folder with {MANIFEST})", self.model)
        if model.manifest.kind != "model":
            raise wrong("--model", "a model", f"{self.model} of kind {model.manifest.kind}")
        return model

    def _find_champion(self) -> Dataset:
        # `Workspace.open` would write to the workspace, for which a user who only predicts may lack permission.
        workspace = Workspace(uris.normalize(self.workspace or "./imagemill-data", "--workspace"))
        expected = "--model: expected the URI of a model, or a --workspace with a champion"
        name = self.name or find_only_name(workspace, expected)
        promotion = workspace.last_promotion(name)
        if promotion is None or not promotion.model:
            names = ", ".join(workspace.names_with_champion()) or "no name has one"
            raise wrong("--name", f"a name that has a champion in {workspace.uri} ({names})", name)
        if not self.name:
            say("predict", f"the champion of {name} in {workspace.uri}")
        return read_dataset(workspace.absolute(promotion.model), "model")


def find_only_name(workspace: Workspace, expected: str = "--name: expected the name of a champion") -> str:
    """Return the only name with a champion; UserError, which says what was `expected`, if there is none or several."""
    names = workspace.names_with_champion()
    if not names:
        raise UserError(f"{expected}, found no champion in {workspace.uri}")
    if len(names) > 1:
        raise wrong("--name", f"one of {', '.join(names)}, which have a champion in {workspace.uri}", "")
    return names[0]
