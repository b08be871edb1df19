"""What can be said about predicting."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..store import uri as uris
from ..store.errors import UserError, wrong
from ..store.manifest import MANIFEST, Dataset, find_dataset, normalize_dataset_uri, read_dataset
from ..store.progress import say
from ..store.workspace import Workspace

DEVICES = ("auto", "cpu", "cuda")
OUTPUTS = (".parquet", ".csv")


@dataclass(frozen=True)
class PredictConfig:
    """`images`: files, folders, s3:// URIs, or `-` for a list of them on stdin, one a line.

    The model is `model`, the URI of its dataset or manifest, or else the champion of `name` in `workspace`; the name
    may be left out where only one has a champion. `top`: so many classes are told of each image. `output`: a local file
    for them, by whose ending its form is known.
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

    def check(self) -> None:
        """UserError for what can't be."""
        if not self.images or not all(one.strip() for one in self.images):
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

    def _check_output(self) -> None:
        if not self.output:
            return
        if uris.scheme(self.output) or not self.output.lower().endswith(OUTPUTS):
            raise wrong("--output", f"a file of this machine that ends in {' or '.join(OUTPUTS)}", self.output)
        path = Path(self.output).expanduser()
        if path.is_dir() or not path.absolute().parent.is_dir():
            raise wrong("--output", "a file in a folder that is there", self.output)

    def find(self) -> Dataset:
        """The model's dataset; UserError where there is none."""
        if not self.model:
            return self._champion()
        found = find_dataset(normalize_dataset_uri(self.model, "--model"))
        if found is None:
            raise wrong("--model", f"the URI of a model (a folder with {MANIFEST})", self.model)
        if found.manifest.kind != "model":
            raise wrong("--model", "a model", f"{self.model} of kind {found.manifest.kind}")
        return found

    def _champion(self) -> Dataset:
        """Read without a word to the workspace: whoever only predicts need not be allowed to write."""
        workspace = Workspace(uris.normalize(self.workspace or "./imagemill-data", "--workspace"))
        name = self.name or _only_name(workspace)
        record = workspace.champion(name)
        if record is None or not record["model"]:
            there = ", ".join(workspace.names_with_champion()) or "no name has one"
            raise wrong("--name", f"a name that has a champion in {workspace.uri} ({there})", name)
        if not self.name:
            say("predict", f"the champion of {name} in {workspace.uri}")
        return read_dataset(workspace.absolute(str(record["model"])), "model")


def _only_name(workspace: Workspace) -> str:
    """The one name that has a champion; UserError where there is none, or a choice."""
    names = workspace.names_with_champion()
    if not names:
        raise UserError(f"--model: expected the URI of a model, or a --workspace with a champion, found neither (no "
                        f"champion in {workspace.uri})")  # fmt: skip
    if len(names) > 1:
        raise wrong("--name", f"one of {', '.join(names)}, which have a champion in {workspace.uri}", "")
    return names[0]
