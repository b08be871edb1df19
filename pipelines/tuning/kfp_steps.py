"""The pods of a search as KFP components, beside clean and resize of the training pipeline."""

# No `from __future__ import annotations` here: KFP reads the annotations as objects.
from typing import List, NamedTuple  # noqa: UP035 - KFP knows `List[str]` as the type of a loop's items

from kfp import dsl

from ..kfp.steps import IMAGES, Form, form_component


@form_component("cpu", whole=True)
def download(
    form: Form, run: str, config: str, manifest: dsl.Output[dsl.Dataset],
) -> NamedTuple("Downloaded", [("raw", str), ("scope", str)]):  # type: ignore[valid-type]  # fmt: skip
    """Read the source into a raw dataset; returns its URI, and the name under which the search prepares the images."""
    from typing import NamedTuple

    from imagemill.pipelines.kfp.artifacts import dataset_metadata
    from imagemill.pipelines.kfp.server_version import check_server
    from imagemill.pipelines.tuning.rungs import download_images

    check_server()
    record, scope = download_images(config, manifest.path, run, form)
    manifest.metadata.update(dataset_metadata(record, manifest.path))
    outputs = NamedTuple("outputs", [("raw", str), ("scope", str)])  # noqa: UP014
    return outputs(record.uri, scope)


@form_component("gpu", whole=True)
def train(
    form: Form, run: str, config: str, scope: str, tensors: str, model: str, trials: str, seeds: str, space: str,
    pruner: str, rung: str, item: str, metrics: dsl.Output[dsl.Metrics],
) -> str:  # fmt: skip
    """Train the base, where `item` is empty, or a trial up to its rung; returns the model's URI, empty before its
    last rung."""
    from imagemill.pipelines.tuning.rungs import SearchInputs, run_pod

    inputs = SearchInputs(scope, tensors, model, trials, seeds, space, pruner)
    tried = run_pod(
        {**form, "config": config}, run, inputs,
        lambda search: search.train(item, int(rung)) if item else search.train_base(), item,
    )  # fmt: skip
    metrics.log_metric("epochs", len(tried.course))
    if tried.score is not None:
        metrics.log_metric("validation score", tried.score)
    return tried.model


@form_component("cpu", whole=True)
def choose(
    form: Form, run: str, config: str, scope: str, tensors: str, model: str, trials: str, seeds: str, space: str,
    pruner: str, rung: str,
) -> List[str]:  # noqa: UP006  # fmt: skip
    """Choose what is trained next; returns the items for `train`."""
    from imagemill.pipelines.tuning.rungs import SearchInputs, run_pod

    inputs = SearchInputs(scope, tensors, model, trials, seeds, space, pruner)
    return run_pod({**form, "config": config}, run, inputs, lambda search: search.choose(int(rung)))


@form_component("cpu", whole=True)
def report(
    form: Form, run: str, config: str, scope: str, tensors: str, model: str, trials: str, seeds: str, space: str,
    pruner: str, page: dsl.Output[dsl.HTML], tuned: dsl.Output[dsl.Artifact],
) -> str:  # fmt: skip
    """Write the report and the best configuration; returns the verdict."""
    from imagemill.components.step.step import download_file
    from imagemill.pipelines.tuning.rungs import SearchInputs, run_pod

    inputs = SearchInputs(scope, tensors, model, trials, seeds, space, pruner)
    result = run_pod({**form, "config": config}, run, inputs, lambda search: search.report(tuned.path))
    download_file(result["report"], page.path)
    tuned.metadata.update({name: result[name] for name in ("verdict", "reason", "best", "config")})
    return str(result["verdict"])


@dsl.component(base_image=IMAGES["cpu"], install_kfp_package=False)
def finish(workspace: str, run: str, status: dsl.PipelineTaskFinalStatus, summary: dsl.Output[dsl.Markdown]) -> None:
    """However the search ended: the run in short, with what went wrong, and nothing of it left in the cluster."""
    from imagemill.pipelines.finish import finish
    from imagemill.pipelines.kfp.server_version import describe_ignored_settings
    from imagemill.pipelines.tuning.rungs import SEARCH_STEPS

    finish(workspace, run, status.state, summary.path, describe_ignored_settings(), SEARCH_STEPS)
