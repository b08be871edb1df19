"""The comparison of a challenger with the champion that the run's page shows: all scores, and F1 by class."""

from __future__ import annotations

from ..dataset.kinds import EvaluationExtra
from ..dataset.manifest import Dataset
from ..report.scores import ChampionComparison
from ..step.config import METRIC_TITLES
from .pairs import PairedPredictions
from .score_difference import ClassCounts, compute_difference


def compare_with_champion(challenger: Dataset, champion: Dataset) -> ChampionComparison:
    tasks = {EvaluationExtra.of(evaluation.manifest).model_task for evaluation in (challenger, champion)}
    if len(tasks) > 1:
        return ChampionComparison("One of them gives an image one label, the other several: they can't be compared.")
    pair = PairedPredictions.read(challenger, champion)
    if not len(pair.labels.classes):
        return ChampionComparison("No test image is left that both can be compared on.")
    counts = ClassCounts.count(pair)
    champion_f1, challenger_f1 = (scores["f1"].tolist() for scores in counts.compute_scores())
    rows = zip(pair.classes, champion_f1, challenger_f1, counts.support, strict=True)
    differences = {title: compute_difference(pair, metric) for metric, title in METRIC_TITLES.items()}
    return ChampionComparison(
        images=pair.images,
        excluded=pair.excluded,
        scores={title: (difference.champion, difference.challenger) for title, difference in differences.items()},
        classes={name: (old, new) for name, old, new, images in rows if images},
    )
