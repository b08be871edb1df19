"""The steps as KFP components: short bodies that call `imagemill.components.<step>` in the step's image.

Datasets are passed as URIs in string parameters (KFP would download an `Input[Dataset]` before the step starts); the
artifacts that the UI shows are small. A body is shipped as source text, so it imports the modules that it uses. Its
`form` holds the parameters of the form that the step has, as the step's options declare them.
"""

# No `from __future__ import annotations` here: KFP reads the annotations as objects.
from typing import NamedTuple

from kfp import dsl

from .form_component import IMAGES, Form, form_component


@form_component("cpu", whole=True)
def download(
    form: Form, run: str, config: str, manifest: dsl.Output[dsl.Dataset],
) -> NamedTuple("Downloaded", [("raw", str), ("name", str), ("changed", str)]):  # type: ignore[valid-type]  # fmt: skip
    """Read the source into a raw dataset; returns its URI, the name that the run goes by, and whether any step after
    this one has something to do. It is given the whole form: what is wrong with it shall be found here."""
    from typing import NamedTuple

    from imagemill.pipelines.cluster.check_and_download import check_and_download
    from imagemill.pipelines.kfp.artifacts import dataset_metadata
    from imagemill.pipelines.kfp.server_version import check_server

    check_server()
    record, changed = check_and_download(config, manifest.path, run, form)
    manifest.metadata.update(dataset_metadata(record, manifest.path))
    outputs = NamedTuple("outputs", [("raw", str), ("name", str), ("changed", str)])  # noqa: UP014
    return outputs(record["uri"], record["metrics"]["name"], changed)


@form_component("cpu")
def clean(form: Form, run: str, config: str, raw: str, manifest: dsl.Output[dsl.Dataset]) -> str:
    """Keep what is valid, reject the rest with reasons, on Ray where the cluster file says so; returns the clean
    dataset's URI."""
    from imagemill.components.clean import STEP
    from imagemill.pipelines.kfp.artifacts import dataset_metadata
    from imagemill.pipelines.kuberay.ray_step import run_step

    record = run_step(STEP, config, manifest.path, run=run, raw=raw, **form)
    manifest.metadata.update(dataset_metadata(record, manifest.path))
    return str(record["uri"])


@form_component("ray")
def resize(form: Form, run: str, config: str, clean: str, manifest: dsl.Output[dsl.Dataset]) -> str:
    """Resize every image, on Ray where the cluster file says so; returns the tensors' URI."""
    from imagemill.components.resize import STEP
    from imagemill.pipelines.kfp.artifacts import dataset_metadata
    from imagemill.pipelines.kuberay.ray_step import run_step

    record = run_step(STEP, config, manifest.path, run=run, clean=clean, **form)
    manifest.metadata.update(dataset_metadata(record, manifest.path))
    return str(record["uri"])


@form_component("gpu")
def train(form: Form, run: str, config: str, tensors: str, manifest: dsl.Output[dsl.Model]) -> str:
    """Train the challenger; returns the model's URI."""
    from imagemill.components.train import STEP
    from imagemill.pipelines.kfp.artifacts import model_metadata

    record = STEP.component(config, manifest.path, run=run, tensors=tensors, **form)
    manifest.metadata.update(model_metadata(record, manifest.path))
    return str(record["uri"])


@form_component("gpu")
def evaluate(
    form: Form, run: str, config: str, model: str, clean: str,
    metrics: dsl.Output[dsl.Metrics], confusion: dsl.Output[dsl.ClassificationMetrics],
) -> NamedTuple("Evaluations", [("evaluation", str), ("champion_evaluation", str)]):  # type: ignore[valid-type]  # fmt: skip
    """Evaluate challenger and champion on the same test split; returns the URIs of both evaluations."""
    from typing import NamedTuple

    from imagemill.components.evaluate import STEP
    from imagemill.components.evaluate.matrix import confusion_matrix, roc_curve
    from imagemill.pipelines.kfp.artifacts import records_metadata

    record = STEP.component(config, "", run=run, model=model, clean=clean, **form)
    for key, value in record["metrics"].items():
        if isinstance(value, float):
            metrics.log_metric(key, value)
    confusion.metadata.update(records_metadata({"evaluate": record}))
    matrix, curve = confusion_matrix(record["uri"]), roc_curve(record["uri"])
    if matrix is not None:
        confusion.log_confusion_matrix(*matrix)
    if curve is not None:
        confusion.log_roc_curve(*curve)
    outputs = NamedTuple("outputs", [("evaluation", str), ("champion_evaluation", str)])  # noqa: UP014
    return outputs(record["uri"], record["metrics"]["champion_evaluation"])


@form_component("cpu")
def promote(
    form: Form, run: str, config: str, evaluation: str, champion_evaluation: str,
    report: dsl.Output[dsl.HTML], summary: dsl.Output[dsl.Markdown],
) -> str:  # fmt: skip
    """Promote the better model, write the report and the run's summary; returns the champion's URI."""
    from imagemill.components.promote import STEP
    from imagemill.pipelines.finish import write_summary
    from imagemill.pipelines.kfp.artifacts import summary_metadata, write_report

    record = STEP.component(
        config, "", run=run, evaluation=evaluation, champion_evaluation=champion_evaluation, **form
    )  # fmt: skip
    write_report(record, report.path)
    summary.metadata.update(summary_metadata(write_summary(form["workspace"], run, summary.path)))
    return str(record["uri"])


@dsl.component(base_image=IMAGES["cpu"], install_kfp_package=False)
def finish(workspace: str, run: str, status: dsl.PipelineTaskFinalStatus, summary: dsl.Output[dsl.Markdown]) -> None:
    """However the steps ended: the run in short, with what went wrong, and nothing of it left in the cluster."""
    from imagemill.pipelines.finish import finish
    from imagemill.pipelines.kfp.artifacts import summary_metadata
    from imagemill.pipelines.kfp.server_version import describe_ignored_settings

    run_summary = finish(workspace, run, status.state, summary.path, describe_ignored_settings())
    summary.metadata.update(summary_metadata(run_summary))
