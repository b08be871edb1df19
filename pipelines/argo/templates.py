"""The templates of the Argo workflow: the pod, command line and retry strategy of each step.

Read in Argo's sources, v3.7.0 to v4.1.2 (workflow/controller/workflowpod.go and operator.go, cmd/argoexec). Argo adds
an init container, and beside the step's container one of its own that reports outputs: both without a security context,
which a namespace that enforces Pod Security `restricted` refuses, unless the template patches the pod.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
from ..kuberay.manifest import FAILURE_CONDITION, SUCCESS_CONDITION
from ..parameters import RunParameters, list_form_parameters
from ..steps import PIPELINE

if TYPE_CHECKING:
    from hera.workflows import Container, Parameter, Resource, RetryStrategy, S3Artifact
    from hera.workflows.models import EnvVar

RUN_PLACEHOLDER = "{{workflow.name}}"
"""The run's name, which is the workflow's."""
RUN_FOLDER = "{{=join(split(trimSuffix(workflow.parameters.workspace, '/') + '/runs/' + workflow.name, '/')[3:], '/')}}"
"""The key of the run's folder in the store: an expression of expr-lang that removes `s3://bucket/`."""
OUTPUTS_DIR = f"{SCRATCH}/outputs"
WORKSPACE_PLACEHOLDER = "{{workflow.parameters.workspace}}"
RETRY_EXPRESSION = (
    '!(lastRetry.message matches "OOMKilled|(specified|its|workflow) deadline") && '
    '(lastRetry.exitCode in ["-1", "75", "137", "143"]'
    ' || lastRetry.status == "Error" && !(lastRetry.exitCode in ["1", "2", "64"])'
    ' || lastRetry.message matches "deleted while its status|context canceled|node shutdown")'
)
"""The condition under which a step is tried again: an expression of expr-lang over the last attempt, of text values.

75 is transient. A lost pod has no exit code (-1: evicted, deleted, its node gone) or that of SIGKILL or SIGTERM;
`Error` with another code is a failure of Argo's own containers, such as that of storing an artifact. Not tried again:
2, the input is wrong; 1, an internal error, which would occur again; 64, Argo's own for a command that can't be started
and for a RayJob that failed; a step that exceeded its memory limit or its deadline (unlike the "context deadline" of
one request, to a store or server that was slow). Tried again, whatever the code: a RayJob that was deleted, and a pod
that watched one and was deleted or stopped.
"""


@dataclass(frozen=True)
class StepPart:
    """A task of the DAG that runs a step in a pod.

    `module`: the module that it runs; `flag_steps`: the steps whose parameters are its flags. Its inputs, which other
    tasks output, are those of its step (`PipelineStep.inputs`).
    """

    module: str
    flag_steps: tuple[str, ...]
    outputs: Mapping[str, str]
    """Output parameter → the file of `--outputs` that holds it. The names are those of the KFP pipeline; where a KFP
    component has one output only, which KFP calls `Output`, it has the name of the next step's flag."""
    artifacts: tuple[str, ...] = ()
    """Files of `--outputs` that are artifacts, which Argo's UI shows."""


STEP_PARTS = {
    "download": StepPart(
        "imagemill.pipelines.argo.download",
        STEPS,
        {"raw": "uri", "name": "name", "changed": "changed", "executor": "executor", "rayjob": "rayjob"},
    ),
    "clean": StepPart(
        "imagemill.pipelines.argo.clean_and_plan",
        ("clean", "resize"),
        {"clean": "uri", "tensors": "tensors", "executor": "executor", "rayjob": "rayjob"},
    ),
    "resize": StepPart("imagemill.components.resize", ("resize",), {"tensors": "uri"}),
    "train": StepPart("imagemill.components.train", ("train",), {"model": "uri"}),
    "evaluate": StepPart(
        "imagemill.components.evaluate",
        ("evaluate",),
        {"evaluation": "uri", "champion_evaluation": "champion_evaluation", "top1": "top1", "macro_f1": "macro_f1"},
        ("metrics.json",),
    ),
    "promote": StepPart(
        "imagemill.components.promote",
        ("promote",),
        {"champion": "uri", "verdict": "verdict", "promoted": "promoted"},
        ("report.html",),
    ),
}


def build_step_template(task: str, cluster: Cluster, parameters: RunParameters) -> Container:
    """Return the container template of a step."""
    from hera.workflows import Parameter

    pod, image = _choose_pod(task, cluster)
    part = STEP_PARTS[task]
    return _build_container(
        task, cluster, pod, image, _build_command(task, part, cluster),
        shm=shm_size(task, pod, parameters),
        inputs=[Parameter(name=name) for name in PIPELINE[task].inputs],
        outputs=[*_build_output_parameters(part), *_build_artifacts(part.artifacts if cluster.argo.artifacts else ())],
        timeout=_get_timeout(cluster),
        retry_strategy=build_retry_strategy(cluster),
        **_build_account_fields(cluster),
    )  # fmt: skip


def _choose_pod(task: str, cluster: Cluster) -> tuple[Pod, str]:
    """Return a step's pod and image: a small pod where a Ray cluster or a RayJob does the work."""
    only_waits = cluster.ray.get_mode(task) in ("address", "rayjob")
    return cluster.small if only_waits else cluster.steps[task], cluster.image_of(task)


def _build_command(name: str, part: StepPart, cluster: Cluster) -> list[str]:
    """Return the command line of a part, in which each flag and its value are one argument."""
    names = [
        name for name, parameter in list_form_parameters().items()
        if not set(part.flag_steps).isdisjoint(parameter.steps)
    ]  # fmt: skip
    values = {name: f"{{{{workflow.parameters.{name}}}}}" for name in names}
    values |= {given: f"{{{{inputs.parameters.{given}}}}}" for given in PIPELINE[name].inputs}
    if name == "resize" and cluster.ray.mode == "address":
        values["ray_address"] = cluster.ray.address
    values |= {"run": RUN_PLACEHOLDER, "outputs": OUTPUTS_DIR}
    return ["python", "-m", part.module, *(f"{name_flag(name)}={value}" for name, value in values.items())]


def _build_output_parameters(part: StepPart) -> list[Parameter]:
    from hera.workflows import Parameter
    from hera.workflows.models import ValueFrom

    return [
        Parameter(name=name, value_from=ValueFrom(path=f"{OUTPUTS_DIR}/{file}", default=""))
        for name, file in part.outputs.items()
    ]


def _build_artifacts(files: Sequence[str]) -> list[S3Artifact]:
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
        for file in files
    ]  # fmt: skip


def build_rayjob_template(cluster: Cluster) -> Resource:
    """Return the template of the RayJob that the pod before has planned, download's or clean's.

    Its retry strategy is for a RayJob that was deleted and for a lost pod that watches one; a RayJob that failed ends
    with exit code 64, which RETRY_EXPRESSION excludes: KubeRay retries that by its backoffLimit. The action is `apply`,
    so that a second attempt goes on watching the RayJob of the first.
    """
    from hera.workflows import Parameter, Resource

    return Resource(
        name="rayjob",
        labels={COMPONENT_LABEL: "rayjob"},
        inputs=[Parameter(name="rayjob")],
        action="apply",
        manifest="{{inputs.parameters.rayjob}}",
        set_owner_reference=True,
        success_condition=SUCCESS_CONDITION,
        failure_condition=FAILURE_CONDITION,
        timeout=_get_timeout(cluster),
        retry_strategy=build_retry_strategy(cluster),
        active_deadline_seconds=get_rayjob_deadline(cluster) or None,
        **_build_account_fields(cluster, launcher=True, resource=True),
    )


def _get_timeout(cluster: Cluster) -> str | None:
    """Return the run's deadline as each step's timeout, at which the controller checks a step whose pod is pending.

    With the run's deadline alone the controller (4.1) forgets it as soon as it waits for anything else: a run whose pod
    stays pending then goes on for up to 20 minutes more, until all workflows are processed again.
    """
    seconds = cluster.limits.run_deadline_seconds
    return f"{seconds}s" if seconds else None


def build_finish_template(cluster: Cluster) -> Container:
    """Return the template of the exit handler, which writes the run's summary and deletes its RayJobs."""
    command = [
        "python", "-m", "imagemill.pipelines.argo.exit_handler", f"--workspace={WORKSPACE_PLACEHOLDER}",
        f"--run={RUN_PLACEHOLDER}", "--status={{workflow.status}}", f"--outputs={OUTPUTS_DIR}",
    ]  # fmt: skip
    return _build_container(
        "finish", cluster, cluster.small, cluster.image("cpu"), command,
        outputs=_build_artifacts(("summary.md",)) if cluster.argo.artifacts else None,
        active_deadline_seconds=cluster.small.deadline_seconds or FINISH_DEADLINE_S,
        retry_strategy=build_retry_strategy(cluster),
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
    name: str, cluster: Cluster, pod: Pod, image: str, command: Sequence[str], *, shm: str = "", **options: Any
) -> Container:
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
        command=list(command[:3]),
        args=list(command[3:]),
        env=_build_environment(name, cluster),
        resources=_build_resources(pod),
        security_context=SecurityContext.model_validate(build_container_security_context()),
        volumes=volumes,
        node_selector=dict(pod.node_selector) or None,
        tolerations=[Toleration.model_validate(toleration) for toleration in pod.tolerations] or None,
        **options,
    )


def _build_environment(name: str, cluster: Cluster) -> list[EnvVar]:
    from hera.workflows.models import EnvVar

    variables = build_storage_env(cluster)
    if name in ("download", "clean", "finish"):
        variables += [{"name": name_, "value": value} for name_, value in build_cluster_variable(cluster).items()]
    if name == "resize" and (secret := cluster.ray.token_secret):
        token = {"secretKeyRef": {"name": secret, "key": TOKEN_KEY}}
        variables.append({"name": "RAY_AUTH_TOKEN", "valueFrom": token})
    return [EnvVar.model_validate(variable) for variable in variables]


def _optional(kind: Any, text: str) -> Any:
    return kind(root=text) if text else None


def _build_resources(pod: Pod) -> Any:
    from hera.workflows.models import ResourceRequirements

    return ResourceRequirements.model_validate(pod.resources())


def _build_account_fields(cluster: Cluster, *, launcher: bool = False, resource: bool = False) -> dict[str, Any]:
    """Return the fields of a template that set service accounts and tokens.

    A step's container has no token, Argo's executor container beside it has one of its own. The launcher's pods have
    their account's token; no code of users runs in them.
    """
    from hera.workflows.models import ExecutorConfig

    argo = cluster.argo
    if launcher:
        patch = _build_pod_spec_patch(cluster, token=True, resource=resource)
        return {"service_account_name": argo.launcher_service_account, "pod_spec_patch": patch}
    if not argo.executor_service_account:
        return {"pod_spec_patch": _build_pod_spec_patch(cluster, token=True)}
    return {
        "automount_service_account_token": False,
        "executor": ExecutorConfig(service_account_name=argo.executor_service_account),
        "pod_spec_patch": _build_pod_spec_patch(cluster),
    }


def _build_pod_spec_patch(cluster: Cluster, *, token: bool = False, resource: bool = False) -> str:
    """Return the patch of a pod that gives Argo's own containers the requests that a quota may need, and the security
    context of Pod Security `restricted`.

    Argo sets the security context of a resource template's itself. Their root file system can't be read-only: argo
    10787. `token`: mount the account's token, which Argo's own field can't ask for where the account says false.
    """
    fields: dict[str, Any] = {"resources": {"requests": {"cpu": "10m", "memory": "64Mi"}}}
    if not resource:
        fields["securityContext"] = {
            k: v for k, v in build_container_security_context().items() if k != "readOnlyRootFilesystem"
        }
    executor = "main" if resource else "supervisor" if cluster.argo.initless else "wait"
    patch: dict[str, Any] = {"automountServiceAccountToken": True} if token else {}
    if not cluster.argo.initless:
        patch["initContainers"] = [{"name": "init", **fields}]
    return json.dumps({**patch, "containers": [{"name": executor, **fields}]})
