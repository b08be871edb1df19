"""The steps as KFP components: short bodies that call `imagemill.components.<step>` in the step's image.

Datasets are passed as URIs in string parameters (KFP would download an `Input[Dataset]` before the step starts); the
artifacts that the UI shows are small. A body is shipped as source text, so it imports the modules that it uses. Its
`form` holds the parameters of the form that the step has, as the step's options declare them.
"""

# No `from __future__ import annotations` here: KFP reads the annotations as objects.
import ast
import inspect
import linecache
import textwrap
from collections.abc import Callable
from typing import Any, NamedTuple

from kfp import dsl

from ...components.dataset.manifest import code_version
from ..parameters import FORM_PARAMETERS, list_parameters

IMAGES = {target: f"imagemill-{target}:{code_version()}" for target in ("cpu", "ray", "gpu")}
"""The images by target of the Dockerfile; nothing is installed when a step starts."""
Form = dict[str, str]
"""Parameters of the form by name, as texts."""


def form_component(target: str, *, whole: bool = False) -> Callable[[Callable[..., Any]], Any]:
    """Return a decorator that makes a KFP component of the function of a step, to run in the image `target`.

    In place of its argument `form` the component has an input for each parameter of the form that the step of its name
    has, or with `whole` for all.
    """

    def decorate(function: Callable[..., Any]) -> Any:
        step = function.__name__
        steps = {name: parameter.steps for name, parameter in list_parameters().items()}
        names = [name for name in FORM_PARAMETERS if whole or step in steps[name]]
        return dsl.component(base_image=IMAGES[target], install_kfp_package=False)(_write_inputs(function, names))

    return decorate


def _write_inputs(function: Callable[..., Any], names: list[str]) -> Callable[..., Any]:
    """Return the function with arguments `names` in place of `form`, which its body makes of them, and its source."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    definition = tree.body[0]
    assert isinstance(definition, ast.FunctionDef)
    definition.decorator_list.clear()
    inputs = [ast.arg(name, ast.Name("str", ast.Load())) for name in names]
    definition.args.args = inputs + [argument for argument in definition.args.args if argument.arg != "form"]
    form = "form = {" + ", ".join(f"{name!r}: {name}" for name in names) + "}"
    definition.body.insert(1, ast.parse(form).body[0])  # below the docstring
    source = ast.unparse(ast.fix_missing_locations(tree)) + "\n"
    file = f"<component {function.__name__}>"
    linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)  # where KFP looks for it
    namespace = dict(function.__globals__)
    exec(compile(source, file, "exec", dont_inherit=True), namespace)
    component: Callable[..., Any] = namespace[function.__name__]
    return component


@form_component("cpu", whole=True)
def download(
    form: Form, run: str, config: str, manifest: dsl.Output[dsl.Dataset],
) -> NamedTuple("Downloaded", [("raw", str), ("name", str), ("changed", str)]):  # type: ignore[valid-type]  # fmt: skip
    """Read the source into a raw dataset; returns its URI, the name that the run goes by, and whether any step after
    this one has something to do. It is given the whole form: what is wrong with it shall be found here."""
    from typing import NamedTuple

    from imagemill.pipelines.cluster.check_and_download import check_and_download
    from imagemill.pipelines.kfp.artifacts import dataset_metadata
    from imagemill.pipelines.kfp.pods import check_server

    check_server()
    record, changed = check_and_download(config, manifest.path, run, form)
    manifest.metadata.update(dataset_metadata(record, manifest.path))
    outputs = NamedTuple("outputs", [("raw", str), ("name", str), ("changed", str)])  # noqa: UP014
    return outputs(record.uri, record.metrics["name"], changed)


@form_component("cpu")
def clean(form: Form, run: str, config: str, raw: str, manifest: dsl.Output[dsl.Dataset]) -> str:
    """Keep what is valid, reject the rest with reasons, on Ray where the cluster file says so; returns the clean
    dataset's URI."""
    from imagemill.components.clean import STEP
    from imagemill.pipelines.kfp.artifacts import dataset_metadata
    from imagemill.pipelines.kuberay.ray_step import run_step

    record = run_step(STEP, config, manifest.path, run=run, raw=raw, **form)
    manifest.metadata.update(dataset_metadata(record, manifest.path))
    return record.uri


@form_component("ray")
def resize(form: Form, run: str, config: str, clean: str, manifest: dsl.Output[dsl.Dataset]) -> str:
    """Resize every image, on Ray where the cluster file says so; returns the tensors' URI."""
    from imagemill.components.resize import STEP
    from imagemill.pipelines.kfp.artifacts import dataset_metadata
    from imagemill.pipelines.kuberay.ray_step import run_step

    record = run_step(STEP, config, manifest.path, run=run, clean=clean, **form)
    manifest.metadata.update(dataset_metadata(record, manifest.path))
    return record.uri


@form_component("gpu")
def train(form: Form, run: str, config: str, tensors: str, manifest: dsl.Output[dsl.Model]) -> str:
    """Train the challenger; returns the model's URI."""
    from imagemill.components.train import STEP
    from imagemill.pipelines.kfp.artifacts import model_metadata

    record = STEP.component(config, manifest.path, run=run, tensors=tensors, **form)
    manifest.metadata.update(model_metadata(record, manifest.path))
    return record.uri


@form_component("gpu")
def evaluate(
    form: Form, run: str, config: str, model: str, clean: str,
    metrics: dsl.Output[dsl.Metrics], confusion: dsl.Output[dsl.ClassificationMetrics],
) -> NamedTuple("Evaluations", [("evaluation", str), ("champion_evaluation", str)]):  # type: ignore[valid-type]  # fmt: skip
    """Evaluate challenger and champion on the same test split; returns the URIs of both evaluations."""
    from typing import NamedTuple

    from imagemill.components.evaluate import STEP
    from imagemill.components.evaluate.curves import confusion_matrix, roc_curve
    from imagemill.pipelines.kfp.artifacts import records_metadata

    record = STEP.component(config, "", run=run, model=model, clean=clean, **form)
    for key, value in record.metrics.items():
        if isinstance(value, float):
            metrics.log_metric(key, value)
    confusion.metadata.update(records_metadata({"evaluate": record}))
    matrix, curve = confusion_matrix(record.uri), roc_curve(record.uri)
    if matrix is not None:
        confusion.log_confusion_matrix(*matrix)
    if curve is not None:
        confusion.log_roc_curve(*curve)
    outputs = NamedTuple("outputs", [("evaluation", str), ("champion_evaluation", str)])  # noqa: UP014
    return outputs(record.uri, record.metrics["champion_evaluation"])


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
    return record.uri


@dsl.component(base_image=IMAGES["cpu"], install_kfp_package=False)
def finish(workspace: str, run: str, status: dsl.PipelineTaskFinalStatus, summary: dsl.Output[dsl.Markdown]) -> None:
    """However the steps ended: the run in short, with what went wrong, and nothing of it left in the cluster."""
    from imagemill.pipelines.finish import finish
    from imagemill.pipelines.kfp.artifacts import summary_metadata
    from imagemill.pipelines.kfp.pods import describe_ignored_settings

    run_summary = finish(workspace, run, status.state, summary.path, describe_ignored_settings())
    summary.metadata.update(summary_metadata(run_summary))
