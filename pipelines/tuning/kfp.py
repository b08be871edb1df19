"""A search as a package for Kubeflow Pipelines, with one pod for each trial; clean and resize are those of the
training pipeline.

Each rung is a pipeline of its own inside: a task that chooses trials, and `dsl.ParallelFor` over them, which no task
outside of it could otherwise wait for.
"""

# No `from __future__ import annotations` here: KFP reads the annotations as objects.
import inspect
import warnings
from pathlib import Path
from typing import Any, List, NamedTuple  # noqa: UP035 - KFP knows `List[str]` as the type of a loop's items

from kfp import dsl

from ..cluster.checks import check_output, set_workspace
from ..cluster.cluster_file import Cluster
from ..compile import quiet_kfp, write_package
from ..kfp import steps
from ..kfp.pods import ClusterPlacement, supports_literals
from ..kfp.steps import IMAGES, Form, form_component
from ..parameters import FORM_PARAMETERS
from ..training import add_choices, make_docstring, make_signature, replace_executor
from .package import NAME, SearchPackage
from .rungs import count_rungs


def compile_kfp(package: SearchPackage, target: Path, cluster: Cluster) -> None:
    """Write the package; UserError for what `compile_kfp` of the training refuses."""
    cluster.require_images("cluster")
    parameters = set_workspace(package.parameters, cluster)
    check_output(target)
    quiet_kfp()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        write_package(build_pipeline(package, cluster), target, parameters.arguments())


def build_pipeline(package: SearchPackage, cluster: Cluster) -> Any:
    """Return the pipeline, a `GraphComponent`."""
    on, form = ClusterPlacement(cluster, package.parameters), package.list_form()
    rung = _build_rung(package, on)

    def tuning(*values: Any) -> None:
        arguments: dict[str, Any] = dict(zip(form, values, strict=True))
        run = dsl.PIPELINE_JOB_ID_PLACEHOLDER
        whole = {"run": run} | {name: arguments[name] for name in (*FORM_PARAMETERS, "config")}
        with on.build_exit_handler(lambda: finish(workspace=arguments["workspace"], run=run)):
            raw = on.place("download", download(**whole))
            scope = raw.outputs["scope"]

            def select_inputs(step: str) -> dict[str, Any]:
                names = [name for name in whole if name == "run" or step in form[name].steps]
                return {name: whole[name] for name in names} | {"name": scope}

            cleaned = on.place("clean", steps.clean(raw=raw.outputs["raw"], **select_inputs("clean")))
            tensors = on.place("resize", steps.resize(clean=cleaned.outputs["Output"], **select_inputs("resize")))
            search = {"scope": scope, "tensors": tensors.outputs["Output"], "pruner": package.pruner}
            search |= whole | {name: arguments[name] for name in ("trials", "seeds", "space")}
            base = on.place("train", train(model="", rung="0", item="", **search))
            base.set_display_name("Base")
            search["model"] = base.outputs["Output"]
            last = base
            for number in range(count_rungs(package.pruner) + 1):
                last = rung(rung=str(number), **search).after(last).set_caching_options(False)
                last.set_display_name(_name_rung(number, package.pruner))
            on.place_small("report", report(**search).after(last))

    tuning.__signature__ = make_signature(form)  # type: ignore[attr-defined]
    tuning.__doc__ = make_docstring(form, "A search for better training parameters.")
    decorate = dsl.pipeline(name=NAME, display_name="Imagemill tuning", pipeline_config=on.build_config())
    pipeline = decorate(tuning)
    replace_executor(pipeline.pipeline_spec)
    if supports_literals(cluster.kfp.version):
        add_choices(pipeline.pipeline_spec, form)
    return pipeline


def _name_rung(number: int, pruner: str) -> str:
    return "New seeds" if number == count_rungs(pruner) else f"Rung {number + 1}"


def _build_rung(package: SearchPackage, on: ClusterPlacement) -> Any:
    """Return the pipeline of one rung, whose inputs are those of `choose`."""
    inputs = choose.component_spec.inputs
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD

    def rung(*values: Any) -> None:
        arguments = dict(zip(inputs, values, strict=True))
        chosen = on.place_small("choose", choose(**arguments))
        with dsl.ParallelFor(chosen.output, name="Trials", parallelism=package.parallelism) as item:
            on.place("train", train(item=item, **arguments)).set_display_name("Trial")

    rung.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [inspect.Parameter(name, kind, annotation=str) for name in inputs]
    )
    return dsl.pipeline(name="rung")(rung)


@form_component("cpu", whole=True)
def download(
    form: Form, run: str, config: str, manifest: dsl.Output[dsl.Dataset],
) -> NamedTuple("Downloaded", [("raw", str), ("scope", str)]):  # type: ignore[valid-type]  # fmt: skip
    """Read the source into a raw dataset; returns its URI, and the name under which the search prepares the images."""
    from typing import NamedTuple

    from imagemill.pipelines.kfp.artifacts import dataset_metadata
    from imagemill.pipelines.kfp.pods import check_server
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
    from imagemill.pipelines.kfp.pods import describe_ignored_settings
    from imagemill.pipelines.tuning.rungs import SEARCH_STEPS

    finish(workspace, run, status.state, summary.path, describe_ignored_settings(), SEARCH_STEPS)
