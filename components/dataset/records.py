"""The records that a workspace keeps beside its datasets: verdicts, promotions and the steps of a run."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .json_object import AS_NULL, JsonObject, OpenJsonObject


@dataclass(frozen=True, kw_only=True)
class Guard(JsonObject):
    """A limit that a challenger is beyond.

    Attributes:
        option: `max_class_drop`, `max_ece_rise` or `max_slowdown`.
        subject: the class, or empty.
        champion, challenger: recall, calibration error or images/s of the two models.
        limit: the user's, or the usual one.
        refuses: the user set the option; else it is a warning.
    """

    option: str
    subject: str = ""
    champion: float
    challenger: float
    limit: float
    refuses: bool


@dataclass(frozen=True, kw_only=True)
class GainEstimate(JsonObject):
    """A difference of two models' scores, challenger minus champion, its standard error, and the number of images that
    it was measured on."""

    gain: float
    error: float
    images: int


@dataclass(frozen=True, kw_only=True)
class ChangedOption(JsonObject):
    """An option of which the two models were made with other values."""

    step: str
    option: str
    champion: Any = field(default=None, metadata=AS_NULL)
    challenger: Any = field(default=None, metadata=AS_NULL)


BETTER, NOT_WORSE, NOT_BETTER, WORSE = "better", "not_worse", "not_better", "worse"
REFUSED, NOT_COMPARABLE, FIRST, NO_BETTER_THAN_CHANCE = "refused", "not_comparable", "first", "no_better_than_chance"
ALREADY_CHAMPION, ROLLED_BACK = "already_champion", "rolled_back"
PASSING = (BETTER, NOT_WORSE, FIRST)
"""Results with which a challenger is promoted."""


@dataclass(frozen=True, kw_only=True)
class Verdict(OpenJsonObject):
    """A verdict on a challenger, as it is stored.

    Attributes:
        verdict, reason, promoted: the result, a sentence with the evidence, and whether the challenger was promoted.
        rule, level: the policy that judged, and its one-sided level.
        challenger, champion: the scores that were compared, of `metric`; None where there is none.
        gain, interval: difference of the scores, and its 95% interval.
        images, left_out: test images that were compared; more that either model was trained on.
        won, lost: images that only one model recognizes.
        min_gain: what the challenger had to gain, by the rule `better`.
        validation: the gain in the scores that training measured on its own images.
        combined: the gain by test and validation images together.
        shared: the gain on the test images of the classes that the champion knows, where others were added and none
            was removed.
        guards: limits that the challenger is beyond.
        changed_options: in which the models' configurations differ.
        added_classes, removed_classes: of today's classes against the champion's.
        renamed_classes: new names of labels by old ones, since the champion was trained.
        train_images, champion_train_images: that the models were trained on.
        note: why there was nothing to compare, or why the model may be no better than a guess.
        challenger_model: fingerprint of the challenger's model.
    """

    verdict: str = ""
    reason: str = ""
    promoted: bool = False
    rule: str = ""
    level: float | None = None
    challenger: float | None = field(default=None, metadata=AS_NULL)
    champion: float | None = field(default=None, metadata=AS_NULL)
    metric: str = ""
    gain: float | None = None
    interval: list[float] | None = None
    images: int | None = None
    left_out: int | None = None
    won: int | None = None
    lost: int | None = None
    min_gain: float | None = None
    validation: GainEstimate | None = None
    combined: GainEstimate | None = None
    shared: GainEstimate | None = None
    guards: list[Guard] = field(default_factory=list)
    changed_options: list[ChangedOption] = field(default_factory=list)
    added_classes: list[str] = field(default_factory=list)
    removed_classes: list[str] = field(default_factory=list)
    renamed_classes: dict[str, str] = field(default_factory=dict)
    train_images: int | None = None
    champion_train_images: int | None = None
    note: str = ""
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
