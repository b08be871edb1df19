"""`imagemill tune --target`: a search as a package for a cluster."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from ...components.storage.errors import wrong
from ..cluster.checks import check_for_pods, read_cluster
from ..cluster.cluster_file import Cluster
from ..experiments.search_space import SearchSpace
from ..parameters import Parameter, RunParameters, list_form_parameters
from .rungs import MAX_TRIALS, dump_space

NAME = "imagemill-tuning"
PRUNERS = ("asha", "none")


@dataclass(frozen=True)
class SearchPackage:
    """Inputs of a package. `parameters`: of the base, which become the package's defaults, as do `trials`,
    `seeds` and `space`, a JSON text; `parallelism`: trials at a time."""

    parameters: RunParameters
    trials: int
    seeds: int
    space: str
    pruner: str
    parallelism: int

    def list_form(self) -> dict[str, Parameter]:
        """Return the parameters of the package's form by name: those of the training, and those of the search."""
        own = {
            "trials": (str(self.trials), f"trials beside the base, all runs together: 1 to {MAX_TRIALS}"),
            "seeds": (str(self.seeds), "new seeds with which base and best values are compared: 2 to 100"),
            "space": (self.space, "the search space as JSON; blank: the one that is built in"),
        }
        search = {name: Parameter(name, default, str, text, (), ()) for name, (default, text) in own.items()}
        return list_form_parameters() | search


def compile_search(target: str, space: SearchSpace, package: SearchPackage, output: Path, cluster_file: str) -> None:
    """Write the package for `target`, kfp or argo.

    UserError for a pruner or a search space that pods can't have, and for what `compile_pipeline` refuses.
    """
    if package.pruner not in PRUNERS:
        raise wrong(
            "--pruner", f"{' or '.join(PRUNERS)} with --target, where trials are compared in rungs", package.pruner
        )
    if package.trials > MAX_TRIALS:
        raise wrong("--trials", f"at most {MAX_TRIALS} with --target", package.trials)
    space.check_train_only("--space")
    package = replace(package, space=dump_space(space))
    check_for_pods(RunParameters({"space": package.space}, {}))
    cluster: Cluster = read_cluster(cluster_file)
    if target == "kfp":
        from .kfp import compile_kfp

        compile_kfp(package, output, cluster)
    else:
        from .argo import compile_argo

        compile_argo(package, output, cluster)
