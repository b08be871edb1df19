"""The records that a workspace keeps beside its datasets: verdicts, promotions and the steps of a run."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .json_object import AS_NULL, JsonObject, OpenJsonObject


@dataclass(frozen=True, kw_only=True)
class Verdict(OpenJsonObject):
    """A verdict on a challenger, as it is stored.

    Attributes:
        gain, interval: difference of the scores, and its 95% interval.
        p, level: of the test, and the level that it has to reach.
        uses: earlier comparisons on the same images.
        images, left_out: test images that were compared; more that either model was trained on.
        won, lost, mcnemar: images that only one model recognizes, and the p value of their difference.
        sketch: a sample of the content hashes of the images.
        fresh_images, fresh_gain, fresh_p, fresh_verdict: of the images that joined after the champion's promotion.
        verdict, reason, promoted: the result, why, and whether the challenger was to be promoted.
        challenger, champion: the scores that were compared, of `metric`; None where there is none.
        challenger_model: fingerprint of the challenger's model.
    """

    gain: float | None = None
    interval: list[float] | None = None
    p: float | None = None
    level: float | None = None
    uses: float | None = None
    images: int | None = None
    left_out: int | None = None
    won: int | None = None
    lost: int | None = None
    mcnemar: float | None = None
    sketch: str | None = None
    fresh_images: int | None = None
    fresh_gain: float | None = None
    fresh_p: float | None = None
    fresh_verdict: str | None = None
    verdict: str = ""
    reason: str = ""
    promoted: bool = False
    challenger: float | None = None
    champion: float | None = field(default=None, metadata=AS_NULL)
    min_gain: float | None = None
    metric: str = ""
    challenger_model: str = ""
    run: str = ""
    created: str = ""


@dataclass(frozen=True, kw_only=True)
class Promotion(Verdict):
    """An entry of a name's log of promotions: the verdict by which a model became champion.

    Attributes:
        n: number of the promotion.
        model, evaluation: their URIs in the workspace.
        previous: URI of the model that was champion before, or empty.
        rolled_back: URIs of the models that this promotion took back.
    """

    n: int = 0
    model: str
    evaluation: str = ""
    previous: str = ""
    rolled_back: list[str] | None = None


@dataclass(frozen=True)
class LatestRecord(JsonObject):
    """The newest dataset of a kind under a name, and the run that made it. `uri`: relative to the workspace."""

    uri: str
    fingerprint: str = ""
    run: str = ""
    created: str = ""


@dataclass(frozen=True)
class WeightsRecord(JsonObject):
    """The pretrained weights of a backbone that a workspace holds.

    Attributes:
        weights: their published name; empty for those of a file.
        uri: of their .safetensors file, relative to the workspace.
        source: URL or file that they were taken from.
    """

    backbone: str
    weights: str
    uri: str
    sha256: str
    bytes: int
    source: str
    created: str


@dataclass(frozen=True)
class CostRecord(JsonObject):
    """The seconds that a step of an experiment took to make a dataset."""

    step: str
    seconds: float
    run: str


@dataclass(frozen=True)
class StepRecord(JsonObject):
    """The result of a step in a run. `inputs`: a digest by which a retry recognizes the same inputs."""

    uri: str = ""
    fingerprint: str = ""
    state: str = "failed"
    metrics: dict[str, Any] = field(default_factory=dict)
    error: str = ""
    inputs: str = ""
    exit_code: int = 0
    seconds: float = 0.0

    @classmethod
    def read(cls, file: str | Path) -> StepRecord:
        """Read the record that a step has written to a local file."""
        return cls.from_dict(json.loads(Path(file).read_text(encoding="utf-8")), str(file))
