"""The templates of the Argo workflow: for each step one pod, its command line, and when it is tried again.

Read in Argo's sources, v3.7.0 to v4.1.2 (workflow/controller/workflowpod.go and operator.go, cmd/argoexec). Argo adds
an init container and, beside a step's, one of its own that reports outputs: both without a security context, which a
namespace that enforces Pod Security `restricted` refuses, unless the template patches the pod.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..components.store.config import STEPS
from .cluster import SCRATCH, TOKEN_KEY, Cluster, Pod
from .parameters import RunParameters, list_form_parameters
from .pod_settings import cluster_variable
from .pods import container_security, rayjob_seconds, storage_env
from .rayjob import FAILURE_CONDITION, SUCCESS_CONDITION
from .shm import shm_size

if TYPE_CHECKING:
    from hera.workflows import Container, Parameter, Resource, RetryStrategy, S3Artifact
    from hera.workflows.models import EnvVar

RUN = "{{workflow.name}}"
"""A workflow is a run."""
RUN_FOLDER = "{{=join(split(trimSuffix(workflow.parameters.workspace, '/') + '/runs/' + workflow.name, '/')[3:], '/')}}"
"""The key of the run's folder in the store: an expression of expr-lang takes `s3://bucket/` off."""
OUTPUTS = f"{SCRATCH}/outputs"
COMPONENT = "app.kubernetes.io/component"
WORKSPACE = "{{workflow.parameters.workspace}}"
RETRY = (
    '!(lastRetry.message matches "OOMKilled|(specified|its|workflow) deadline") && '
    '(lastRetry.exitCode in ["-1", "75", "137", "143"]'
    ' || lastRetry.status == "Error" && !(lastRetry.exitCode in ["1", "2", "64"])'
    ' || lastRetry.message matches "deleted while its status|context canceled|node shutdown")'
)
"""When a step is tried again: an expression of expr-lang over the last try, whose values are all text.

75 is transient. A lost pod has no exit code (-1: evicted, deleted, its node gone) or that of SIGKILL or SIGTERM;
`Error` with another code is a failure of Argo's own containers, such as that of storing an artifact. Not again: 2, the
input is wrong; 1, an error of ours, which comes again; 64, Argo's own for a command that can't be started and for a
RayJob that failed; a step that took more memory than it may have; one that ran into its deadline (unlike the "context
deadline" of one request, to a store or server that was slow). But again, whatever the code: a RayJob that somebody has
deleted, and a pod that looked at one and was told to go.
"""


@dataclass(frozen=True)
class Part:
    """A task of the DAG, with the name of its step: what it takes from other tasks, and what it gives.

    `module`: what it runs; `flags_of`: the steps whose parameters are its flags.
    """

    module: str
    flags_of: tuple[str, ...]
    takes: tuple[str, ...]
    gives: Mapping[str, str]
    """Output parameter → the file of `--outputs` that holds it. Named as in the KFP pipeline, and as its flags are;
    where a KFP component has one output only, which KFP calls `Output`, it is what the next step's flag is called."""
    artifacts: tuple[str, ...] = ()
    """Files of `--outputs` that Argo's UI shows."""


PARTS = {
    "download": Part("imagemill.pipelines.first_step", STEPS, (), {"raw": "uri", "name": "name", "changed": "changed"}),
    "clean": Part(
        "imagemill.pipelines.planning",
        ("clean", "resize"),
        ("name", "raw"),
        {"clean": "uri", "tensors": "tensors", "executor": "executor", "rayjob": "rayjob"},
    ),
    "resize": Part("imagemill.components.resize", ("resize",), ("name", "clean"), {"tensors": "uri"}),
    "train": Part("imagemill.components.train", ("train",), ("name", "tensors"), {"model": "uri"}),
    "evaluate": Part(
        "imagemill.components.evaluate",
        ("evaluate",),
        ("name", "model", "clean"),
        {"evaluation": "uri", "champion_evaluation": "champion_evaluation", "top1": "top1", "macro_f1": "macro_f1"},
        ("metrics.json",),
    ),
    "promote": Part(
        "imagemill.components.promote",
        ("promote",),
        ("name", "evaluation", "champion_evaluation"),
        {"champion": "uri", "verdict": "verdict", "promoted": "promoted"},
        ("report.html",),
    ),
}


def step_template(task: str, cluster: Cluster, parameters: RunParameters) -> Container:
    """The pod of a step that runs in it."""
    from hera.workflows import Parameter

    part = PARTS[task]
    pod, image = _size(task, cluster)
    return _container(
        task, cluster, pod, image, _words(task, cluster),
        shm=shm_size(task, pod, parameters),
        inputs=[Parameter(name=name) for name in part.takes],
        outputs=[*_parameters(part), *(_artifacts(part.artifacts) if cluster.argo.artifacts else ())],
        timeout=_timeout(cluster),
        retry_strategy=retry(cluster),
        **_accounts(cluster),
    )  # fmt: skip


def _size(task: str, cluster: Cluster) -> tuple[Pod, str]:
    """The pod and its image: a small one where it only waits for a cluster of Ray."""
    waits = task == "resize" and cluster.ray.mode == "address"
    return cluster.small if waits else cluster.steps[task], cluster.image_of(task)


def _words(task: str, cluster: Cluster) -> list[str]:
    """The command line: each flag with its value is one word, which no shell reads."""
    part = PARTS[task]
    values = {
        name: f"{{{{workflow.parameters.{name}}}}}"
        for name, parameter in list_form_parameters().items()
        if not set(part.flags_of).isdisjoint(parameter.steps)
    }
    values |= {name: f"{{{{inputs.parameters.{name}}}}}" for name in part.takes}
    if task == "resize" and cluster.ray.mode == "address":
        values["ray_address"] = cluster.ray.address
    values |= {"run": RUN, "outputs": OUTPUTS}
    return ["python", "-m", part.module, *(f"--{name.replace('_', '-')}={value}" for name, value in values.items())]


def _parameters(part: Part) -> list[Parameter]:
    from hera.workflows import Parameter
    from hera.workflows.models import ValueFrom

    return [
        Parameter(name=name, value_from=ValueFrom(path=f"{OUTPUTS}/{file}", default=""))
        for name, file in part.gives.items()
    ]


def _artifacts(files: Sequence[str]) -> list[S3Artifact]:
    """What Argo's UI shows of a step: files of the run's folder in the workspace, and no copies that would stay.

    Not artifactGC: its finalizer keeps a deleted workflow running to its end, and with `forceFinalizerRemoval` a run
    without artifacts is never removed (read in Argo 4.1.2 and seen). A key alone is one in the artifact repository,
    whatever kind of store that is.
    """
    from hera.workflows import NoneArchiveStrategy, S3Artifact

    return [
        S3Artifact(
            name=file.partition(".")[0], path=f"{OUTPUTS}/{file}", key=f"{RUN_FOLDER}/{file}",
            archive=NoneArchiveStrategy(), optional=True,
        )
        for file in files
    ]  # fmt: skip


def rayjob_template(cluster: Cluster) -> Resource:
    """The RayJob that clean's pod has planned. It is applied: a second try goes on watching that of the first."""
    from hera.workflows import Parameter, Resource

    return Resource(
        name="rayjob",
        labels={COMPONENT: "rayjob"},
        inputs=[Parameter(name="rayjob")],
        action="apply",
        manifest="{{inputs.parameters.rayjob}}",
        set_owner_reference=True,
        success_condition=SUCCESS_CONDITION,
        failure_condition=FAILURE_CONDITION,
        timeout=_timeout(cluster),
        retry_strategy=retry(cluster),
        active_deadline_seconds=rayjob_seconds(cluster) or None,
        **_accounts(cluster, launcher=True, resource=True),
    )


def _timeout(cluster: Cluster) -> str | None:
    """The run's own deadline for each step, by which Argo looks again at one whose pod finds no node.

    Of a run's deadline alone the controller (4.1) loses sight as soon as it has anything else to wait for: a run whose
    pod stays pending then goes on for up to 20 minutes more, until all workflows are looked at.
    """
    seconds = cluster.limits.run_deadline_seconds
    return f"{seconds}s" if seconds else None


def finish_template(cluster: Cluster) -> Container:
    """The exit handler: says what came of the run, and deletes what is left of it."""
    words = [
        "python", "-m", "imagemill.pipelines.argo_exit", f"--workspace={WORKSPACE}", f"--run={RUN}",
        "--status={{workflow.status}}", f"--outputs={OUTPUTS}",
    ]  # fmt: skip
    return _container(
        "finish", cluster, cluster.small, cluster.image("cpu"), words,
        outputs=_artifacts(("summary.md",)) if cluster.argo.artifacts else None,
        active_deadline_seconds=cluster.small.deadline_seconds or FINISH_SECONDS,
        retry_strategy=retry(cluster),
        **_accounts(cluster, launcher=True),
    )  # fmt: skip


FINISH_SECONDS = 900
"""The longest that the exit handler may take, unless the file says it: the run's own deadline does not count for it."""


def retry(cluster: Cluster) -> RetryStrategy:
    from hera.workflows import RetryStrategy
    from hera.workflows.models import Backoff
    from hera.workflows.models.io.k8s.apimachinery.pkg.util.intstr import IntOrString

    return RetryStrategy(
        limit=cluster.limits.lost_pod_retries,
        retry_policy="Always",  # of `Failed` and `Error`: the expression decides
        expression=RETRY,
        backoff=Backoff(duration="30s", factor=IntOrString(root=2)),
    )


def _container(
    name: str, cluster: Cluster, pod: Pod, image: str, words: Sequence[str], *, shm: str = "", **options: Any
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
        labels={COMPONENT: name},
        image=image,
        image_pull_policy=cluster.images.pull_policy,
        command=list(words[:3]),
        args=list(words[3:]),
        env=_environment(name, cluster),
        resources=_resources(pod),
        security_context=SecurityContext.model_validate(container_security()),
        volumes=volumes,
        node_selector=dict(pod.node_selector) or None,
        tolerations=[Toleration.model_validate(one) for one in pod.tolerations] or None,
        **options,
    )


def _environment(name: str, cluster: Cluster) -> list[EnvVar]:
    from hera.workflows.models import EnvVar

    found = storage_env(cluster)
    if name in ("clean", "finish"):
        found += [{"name": variable, "value": text} for variable, text in cluster_variable(cluster).items()]
    if name == "resize" and (secret := cluster.ray.token_secret):
        token = {"secretKeyRef": {"name": secret, "key": TOKEN_KEY}}
        found.append({"name": "RAY_AUTH_TOKEN", "valueFrom": token})
    return [EnvVar.model_validate(one) for one in found]


def _optional(kind: Any, text: str) -> Any:
    return kind(root=text) if text else None


def _resources(pod: Pod) -> Any:
    from hera.workflows.models import ResourceRequirements

    return ResourceRequirements.model_validate(pod.resources())


def _accounts(cluster: Cluster, *, launcher: bool = False, resource: bool = False) -> dict[str, Any]:
    """Who the containers of a pod are: a step has no token, Argo's own container beside it has one of its own.

    The launcher's pods have their account's token, and no code of users' runs in them.
    """
    from hera.workflows.models import ExecutorConfig

    argo = cluster.argo
    if launcher:
        patch = _patch(cluster, token=True, resource=resource)
        return {"service_account_name": argo.launcher_service_account, "pod_spec_patch": patch}
    if not argo.executor_service_account:
        return {"pod_spec_patch": _patch(cluster, token=True)}
    return {
        "automount_service_account_token": False,
        "executor": ExecutorConfig(service_account_name=argo.executor_service_account),
        "pod_spec_patch": _patch(cluster),
    }


def _patch(cluster: Cluster, *, token: bool = False, resource: bool = False) -> str:
    """What Argo's own containers are given: a size, which a quota may ask for, and what `restricted` asks for.

    Argo secures those of a resource template itself. Their root file system can't be read-only: argo 10787. `token`:
    Argo writes no `true` into a pod, and without it an account's own `automountServiceAccountToken: false` holds.
    """
    own: dict[str, Any] = {"resources": {"requests": {"cpu": "10m", "memory": "64Mi"}}}
    if not resource:
        own["securityContext"] = {k: v for k, v in container_security().items() if k != "readOnlyRootFilesystem"}
    beside = "main" if resource else "supervisor" if cluster.argo.initless else "wait"
    patch: dict[str, Any] = {"automountServiceAccountToken": True} if token else {}
    if not cluster.argo.initless:
        patch["initContainers"] = [{"name": "init", **own}]
    return json.dumps({**patch, "containers": [{"name": beside, **own}]})
