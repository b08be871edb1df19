"""A search as a package for Kubeflow Pipelines, with one pod for each trial.

Each rung is a pipeline of its own inside: a task that chooses trials, and `dsl.ParallelFor` over them, which no task
outside of it could otherwise wait for.
"""

from __future__ import annotations

import inspect
import warnings
from pathlib import Path
from typing import Any

from kfp import dsl

from ..cluster.checks import check_output, set_workspace
from ..cluster.cluster_file import Cluster
from ..compile import quiet_kfp, write_package
from ..kfp import steps
from ..kfp.pods import ClusterPlacement
from ..kfp.server_version import supports_literals
from ..parameters import FORM_PARAMETERS
from ..training import add_choices, make_docstring, make_signature, replace_executor
from . import kfp_steps
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
        with on.build_exit_handler(lambda: kfp_steps.finish(workspace=arguments["workspace"], run=run)):
            raw = on.place("download", kfp_steps.download(**whole))
            scope = raw.outputs["scope"]

            def select_inputs(step: str) -> dict[str, Any]:
                names = [name for name in whole if name == "run" or step in form[name].steps]
                return {name: whole[name] for name in names} | {"name": scope}

            cleaned = on.place("clean", steps.clean(raw=raw.outputs["raw"], **select_inputs("clean")))
            tensors = on.place("resize", steps.resize(clean=cleaned.outputs["Output"], **select_inputs("resize")))
            search = {"scope": scope, "tensors": tensors.outputs["Output"], "pruner": package.pruner}
            search |= whole | {name: arguments[name] for name in ("trials", "seeds", "space")}
            base = on.place("train", kfp_steps.train(model="", rung="0", item="", **search))
            base.set_display_name("Base")
            search["model"] = base.outputs["Output"]
            last = base
            for number in range(count_rungs(package.pruner) + 1):
                last = rung(rung=str(number), **search).after(last).set_caching_options(False)
                last.set_display_name(_name_rung(number, package.pruner))
            on.place_small("report", kfp_steps.report(**search).after(last))

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
    inputs = kfp_steps.choose.component_spec.inputs
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD

    def rung(*values: Any) -> None:
        arguments = dict(zip(inputs, values, strict=True))
        chosen = on.place_small("choose", kfp_steps.choose(**arguments))
        with dsl.ParallelFor(chosen.output, name="Trials", parallelism=package.parallelism) as item:
            on.place("train", kfp_steps.train(item=item, **arguments)).set_display_name("Trial")

    rung.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [inspect.Parameter(name, kind, annotation=str) for name in inputs]
    )
    return dsl.pipeline(name="rung")(rung)
