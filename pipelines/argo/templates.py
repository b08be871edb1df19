"""The templates of the Argo workflow: the pod, command line and retry strategy of each step.

Read in Argo's sources, v3.7.0 to v4.1.2 (workflow/controller/workflowpod.go and operator.go, cmd/argoexec). Argo adds
an init container, and beside the step's container one of its own that reports outputs: both without a security context,
which a namespace that enforces Pod Security `restricted` refuses, unless the template patches the pod.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ...components.dataset.workspace import STEPS
from ...components.step.config import name_flag
from ..cluster.cluster_file import COMPONENT_LABEL, SCRATCH, TOKEN_KEY, Cluster, Pod
from ..cluster.pod_fields import (
    build_cluster_variable,
    build_container_security_context,
    build_storage_env,
    get_rayjob_deadline,
    shm_size,
)
from ..finish import FINISH, SUMMARY
from ..parameters import RunParameters, list_step_parameters
from ..steps import PIPELINE, list_outputs

if TYPE_CHECKING:
    from hera.workflows import Container, Parameter, RetryStrategy, S3Artifact
    from hera.workflows.models import EnvVar

RUN_PLACEHOLDER = "{{workflow.name}}"
"""The run's name, which is the workflow's."""
RUN_FOLDER = "{{=join(split(trimSuffix(workflow.parameters.workspace, '/') + '/runs/' + workflow.name, '/')[3:], '/')}}"
"""The key of the run's folder in the store: an expression of expr-lang that removes `s3://bucket/`."""
OUTPUTS_DIR = f"{SCRATCH}/outputs"
RETRY_EXPRESSION = (
    '!(lastRetry.message matches "OOMKilled|(specified|its|workflow) deadline") && '
    '(lastRetry.exitCode in ["-1", "75", "137", "143"]'
    ' || lastRetry.status == "Error" && !(lastRetry.exitCode in ["1", "2", "64"])'
    ' || lastRetry.message matches "deleted while its status|context canceled|node shutdown")'
)
"""The condition under which a step is tried again: an expression of expr-lang over the last attempt, of text values.

75 is transient. A lost pod has no exit code (-1: evicted, deleted, its node gone) or that of SIGKILL or SIGTERM;
`Error` with another code is a failure of Argo's own containers, such as that of storing an artifact. Not tried again:
2, the input is wrong; 1, an internal error, which would occur again; 64, Argo's own for a command that can't be
started; a step that exceeded its memory limit or its deadline (unlike the "context deadline" of one request, to a store
or server that was slow).
"""


ARTIFACTS = {"evaluate": ("metrics.json",), "promote": ("report.html",), FINISH: (SUMMARY,)}
"""The files of `--outputs` that are artifacts, which Argo's UI shows."""


def build_step_template(step: str, cluster: Cluster, parameters: RunParameters) -> Container:
    """Return the container template of a step."""
    from hera.workflows import Parameter

    pod, image = _choose_pod(step, cluster)
    inputs = PIPELINE[step].inputs
    form = {name: f"{{{{workflow.parameters.{name}}}}}" for name in list_step_parameters(step)}
    taken = {name: f"{{{{inputs.parameters.{name}}}}}" for name in inputs}
    makes_rayjob = cluster.ray.may_make_rayjob(step)
    options: dict[str, Any] = {}
    if makes_rayjob and not pod.deadline_seconds:
        options["active_deadline_seconds"] = get_rayjob_deadline(cluster) or None
    return _build_container(
        step, cluster, pod, image, {**form, **taken, "run": RUN_PLACEHOLDER, "outputs": OUTPUTS_DIR},
        shm=shm_size(step, pod, parameters),
        inputs=[Parameter(name=name) for name in inputs],
        outputs=[*_build_output_parameters(step), *_build_artifacts(step, cluster)],
        timeout=_get_timeout(cluster),
        **options,
        **_build_account_fields(cluster, launcher=makes_rayjob),
    )  # fmt: skip


def _choose_pod(step: str, cluster: Cluster) -> tuple[Pod, str]:
    """Return a step's pod and image: a small pod, without Ray, where it only waits for its RayJob."""
    mode = cluster.ray.get_mode(step)
    pod = cluster.small if mode in ("address", "rayjob") else cluster.steps[step]
    return pod, cluster.image("cpu") if mode == "rayjob" else cluster.image_of(step)


def _build_output_parameters(step: str) -> list[Parameter]:
    from hera.workflows import Parameter
    from hera.workflows.models import ValueFrom

    names = [*list_outputs(step), *(["changed"] if step == STEPS[0] else [])]
    return [Parameter(name=name, value_from=ValueFrom(path=f"{OUTPUTS_DIR}/{name}", default="")) for name in names]


def _build_artifacts(name: str, cluster: Cluster) -> list[S3Artifact]:
    """Return artifacts for Argo's UI that are files of the run's folder in the workspace, so that no copies remain.

    Not artifactGC: its finalizer keeps a deleted workflow running to its end, and with `forceFinalizerRemoval` a run
    without artifacts is never removed (read in Argo 4.1.2 and seen). A key alone is one in the artifact repository,
    whatever kind of store that is.
    """
    from hera.workflows import NoneArchiveStrategy, S3Artifact

    return [
        S3Artifact(
            name=file.partition(".")[0], path=f"{OUTPUTS_DIR}/{file}", key=f"{RUN_FOLDER}/{file}",
            archive=NoneArchiveStrategy(), optional=True,
        )
        for file in (ARTIFACTS.get(name, ()) if cluster.argo.artifacts else ())
    ]  # fmt: skip


def _get_timeout(cluster: Cluster) -> str | None:
    """Return the run's deadline as each step's timeout, at which the controller checks a step whose pod is pending.

    With the run's deadline alone the controller (4.1) forgets it as soon as it waits for anything else: a run whose pod
    stays pending then goes on for up to 20 minutes more, until all workflows are processed again.
    """
    seconds = cluster.limits.run_deadline_seconds
    return f"{seconds}s" if seconds else None


def build_finish_template(cluster: Cluster) -> Container:
    """Return the template of the exit handler, which writes the run's summary and deletes its RayJobs."""
    values = {
        "workspace": "{{workflow.parameters.workspace}}", "status": "{{workflow.status}}", "run": RUN_PLACEHOLDER,
        "outputs": OUTPUTS_DIR,
    }  # fmt: skip
    return _build_container(
        FINISH, cluster, cluster.small, cluster.image("cpu"), values,
        outputs=_build_artifacts(FINISH, cluster) or None,
        active_deadline_seconds=cluster.small.deadline_seconds or FINISH_DEADLINE_S,
        **_build_account_fields(cluster, launcher=True),
    )  # fmt: skip


FINISH_DEADLINE_S = 900
"""Deadline of the exit handler in seconds, unless the cluster file has one: the run's own does not apply to it."""


def build_retry_strategy(cluster: Cluster) -> RetryStrategy:
    from hera.workflows import RetryStrategy
    from hera.workflows.models import Backoff
    from hera.workflows.models.io.k8s.apimachinery.pkg.util.intstr import IntOrString

    return RetryStrategy(
        limit=cluster.limits.lost_pod_retries,
        retry_policy="Always",  # of `Failed` and `Error`: the expression decides
        expression=RETRY_EXPRESSION,
        backoff=Backoff(duration="30s", factor=IntOrString(root=2)),
    )


def _build_container(
    name: str, cluster: Cluster, pod: Pod, image: str, values: Mapping[str, str], *, shm: str = "", **options: Any
) -> Container:
    """Return the template of a pod that runs `pod.py` with these values, each flag and its value one argument."""
    from hera.workflows import Container, EmptyDirVolume
    from hera.workflows.models import SecurityContext, Toleration
    from hera.workflows.models.io.k8s.apimachinery.pkg.api.resource import Quantity

    volumes = [
        EmptyDirVolume(name="scratch", mount_path=SCRATCH, size_limit=_optional(Quantity, pod.ephemeral_storage))
    ]
    if shm:
        volumes.append(
            EmptyDirVolume(name="shm", mount_path="/dev/shm", medium="Memory", size_limit=Quantity(root=shm))
        )
    if pod.deadline_seconds:
        options.setdefault("active_deadline_seconds", pod.deadline_seconds)
    return Container(
        name=name,
        labels={COMPONENT_LABEL: name},
        image=image,
        image_pull_policy=cluster.images.pull_policy,
        command=["python", "-m", "imagemill.pipelines.pod"],
        args=[name, *(f"{name_flag(key)}={value}" for key, value in values.items())],
        env=_build_environment(name, cluster),
        resources=_build_resources(pod),
        security_context=SecurityContext.model_validate(build_container_security_context()),
        volumes=volumes,
        node_selector=dict(pod.node_selector) or None,
        tolerations=[Toleration.model_validate(toleration) for toleration in pod.tolerations] or None,
        retry_strategy=build_retry_strategy(cluster),
        **options,
    )


def _build_environment(name: str, cluster: Cluster) -> list[EnvVar]:
    from hera.workflows.models import EnvVar

    variables = build_storage_env(cluster)
    ray = cluster.ray
    if (name in PIPELINE and ray.get_mode(name) != "pod") or (name == FINISH and ray.makes_rayjobs):
        variables += [{"name": name_, "value": value} for name_, value in build_cluster_variable(cluster).items()]
    if name in PIPELINE and ray.get_mode(name) == "address" and (secret := ray.token_secret):
        token = {"secretKeyRef": {"name": secret, "key": TOKEN_KEY}}
        variables.append({"name": "RAY_AUTH_TOKEN", "valueFrom": token})
    return [EnvVar.model_validate(variable) for variable in variables]


def _optional(kind: Any, text: str) -> Any:
    return kind(root=text) if text else None


def _build_resources(pod: Pod) -> Any:
    from hera.workflows.models import ResourceRequirements

    return ResourceRequirements.model_validate(pod.resources())


def _build_account_fields(cluster: Cluster, *, launcher: bool = False) -> dict[str, Any]:
    """Return the fields of a template that set service accounts and tokens.

    A step's container has no token, Argo's executor container beside it has one of its own; but a pod that may make a
    RayJob has the launcher's.
    """
    from hera.workflows.models import ExecutorConfig

    argo = cluster.argo
    if launcher:
        return {
            "service_account_name": argo.launcher_service_account,
            "pod_spec_patch": _build_pod_spec_patch(cluster, token=True),
        }
    if not argo.executor_service_account:
        return {"pod_spec_patch": _build_pod_spec_patch(cluster, token=True)}
    return {
        "automount_service_account_token": False,
        "executor": ExecutorConfig(service_account_name=argo.executor_service_account),
        "pod_spec_patch": _build_pod_spec_patch(cluster),
    }


def _build_pod_spec_patch(cluster: Cluster, *, token: bool = False) -> str:
    """Return the patch of a pod that gives Argo's own containers the requests that a quota may need, and the security
    context of Pod Security `restricted`.

    Their root file system can't be read-only: argo 10787. `token`: mount the account's token, which Argo's own field
    can't ask for where the account says false.
    """
    fields: dict[str, Any] = {"resources": {"requests": {"cpu": "10m", "memory": "64Mi"}}}
    fields["securityContext"] = {
        k: v for k, v in build_container_security_context().items() if k != "readOnlyRootFilesystem"
    }
    patch: dict[str, Any] = {"automountServiceAccountToken": True} if token else {}
    if not cluster.argo.initless:
        patch["initContainers"] = [{"name": "init", **fields}]
    executor = "supervisor" if cluster.argo.initless else "wait"
    return json.dumps({**patch, "containers": [{"name": executor, **fields}]})
