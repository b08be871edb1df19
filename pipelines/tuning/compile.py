"""`imagemill tune --target`: write a search as a package for a cluster."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ...components.storage.errors import wrong
from ..cluster.checks import check_for_pods, read_cluster
from ..cluster.cluster_file import Cluster
from ..experiments.search_space import SearchSpace
from ..parameters import RunParameters
from .package import SearchPackage
from .rungs import MAX_TRIALS, dump_space

PRUNERS = ("asha", "none")


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
