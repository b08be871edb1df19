"""The pods of a KFP run, from the cluster file: image, resources, volumes, credentials, identity, deadlines, retries.

Kubeflow's API server itself adds to each pod (read in its sources): the label `pipeline/runid`, the annotation that
keeps Istio's sidecar out, and from 2.16 on no privilege escalation, all capabilities dropped and the seccomp profile
RuntimeDefault. With the user set here that meets Pod Security `restricted`, which refuses an older server's pods. KFP
has no setting for a read-only root file system, for ephemeral storage nor for a service account of one step. Its
retries have a number and no policy: which failures are tried again is the Argo controller's default.

A server that finds an unknown field among a package's settings of whole runs silently ignores the package's second
document (read in the sources of 2.3 to 2.17): all pods then lack credentials, GPUs, volumes, user. Of single pods it
ignores the unknown settings alone. Deadlines and lifetimes of whole runs came with 2.17, the pods' user with 2.16.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..cluster.cluster_file import COMPONENT_LABEL, LABELS, RUN_LABEL, SCRATCH, TOKEN_KEY, UID, Cluster, Pod
from ..cluster.pod_fields import (
    NO_SIDECAR,
    build_cluster_variable,
    build_plain_storage_variables,
    get_rayjob_deadline,
    shm_size,
)
from ..cluster.unchanged import CHANGED
from ..parameters import RunParameters
from ..settings import parse_quantity, to_text
from .results import KFP_VERSION_VARIABLE, POD_NAME_VARIABLE

if TYPE_CHECKING:
    from kfp import dsl

Task = Any
"""A `dsl.PipelineTask`."""
RUN_ID = "{{workflow.uid}}"
"""The run's id in a label. KFP's own placeholders ({{$.pipeline_job_uuid}}) are not resolved there; KFP's API server
replaces this one in the whole workflow, and gives its steps the same id. Argo would replace it, too."""
RETRY_BACKOFF = "30s"
_KFP_CPU = re.compile(r"\d+(\.\d+)?m?")
_KFP_MEMORY = re.compile(r"\d+([EPTGMK]i?)?")
RUN_SETTINGS_SINCE = (2, 17)
LITERALS_SINCE = (2, 16)


@dataclass(frozen=True)
class ClusterPlacement:
    """Placement of tasks in the pods of `cluster`; `parameters` are those that become the package's defaults."""

    cluster: Cluster
    parameters: RunParameters

    def place(self, step: str, task: Task) -> Task:
        """Configure the pod of a step: a small one, without Ray, where the step only waits for its RayJob."""
        cluster, mode = self.cluster, self.cluster.ray.get_mode(step)
        if mode == "address" and (secret := cluster.ray.token_secret):
            _import_kubernetes().use_secret_as_env(task, secret, {TOKEN_KEY: "RAY_AUTH_TOKEN"})
        pod = cluster.small if mode in ("rayjob", "address") else cluster.steps[step]
        self._configure(step, task, cluster.image("cpu") if mode == "rayjob" else cluster.image_of(step), pod)
        if cluster.ray.may_make_rayjob(step) and not pod.deadline_seconds:
            _set_timeout(task, get_rayjob_deadline(cluster))
        return task

    def place_small(self, name: str, task: Task) -> Task:
        """Configure a small pod, which is no step's."""
        return self._configure(name, task, self.cluster.image("cpu"), self.cluster.small)

    def build_config(self) -> dsl.PipelineConfig | None:
        """Return the settings of the whole run: its deadline, and how long the workflow is kept after its end."""
        from kfp import dsl

        limits = self.cluster.limits
        if not supports_run_settings(self.cluster.kfp.version):
            return None
        return dsl.PipelineConfig(
            active_deadline_seconds=limits.run_deadline_seconds or None,
            ttl_seconds_after_success=limits.keep_succeeded_seconds or None,
            ttl_seconds_after_failure=limits.keep_failed_seconds or None,
        )

    def build_exit_handler(self, make: Callable[[], Task]) -> contextlib.AbstractContextManager[Any]:
        """Return the group of all steps, after which the exit step runs however they end."""
        from kfp import dsl

        exit_step = self.place_small("finish", make())
        group: contextlib.AbstractContextManager[Any] = dsl.ExitHandler(exit_step, name="Training")
        return group

    def build_changed_group(self, download: Task) -> contextlib.AbstractContextManager[Any]:
        """Return the group of the steps after download, which is skipped where nothing has changed."""
        from kfp import dsl

        group: contextlib.AbstractContextManager[Any] = dsl.If(
            download.outputs["changed"] == CHANGED, name="What has changed"
        )
        return group

    def _configure(self, step: str, task: Task, image: str, pod: Pod) -> Task:
        _set_display_options(step, task)
        task.set_container_image(image)
        if self.cluster.limits.lost_pod_retries:
            task.set_retry(self.cluster.limits.lost_pod_retries, backoff_duration=RETRY_BACKOFF, backoff_factor=2.0)
        _set_resources(task, pod)
        _mount_volumes(task, pod, shm_size(step, pod, self.parameters))
        _set_node_constraints(task, pod)
        run_deadline_seconds = (
            0 if supports_run_settings(self.cluster.kfp.version) else self.cluster.limits.run_deadline_seconds
        )
        _set_timeout(task, pod.deadline_seconds or run_deadline_seconds)
        task.set_env_variable(KFP_VERSION_VARIABLE, self.cluster.kfp.version)
        ray = self.cluster.ray
        if ray.get_mode(step) != "pod" or (step == "finish" and ray.makes_rayjobs):
            for name, value in build_cluster_variable(self.cluster).items():
                task.set_env_variable(name, value)
        self._set_storage(task)
        self._set_identity(step, task)
        return task

    def _set_storage(self, task: Task) -> None:
        storage = self.cluster.storage
        for name, value in build_plain_storage_variables(self.cluster).items():
            task.set_env_variable(name, value)
        if storage.secret:
            keys = {storage.access_key: "AWS_ACCESS_KEY_ID", storage.secret_key: "AWS_SECRET_ACCESS_KEY"}
            _import_kubernetes().use_secret_as_env(task, storage.secret, keys)

    def _set_identity(self, step: str, task: Task) -> None:
        """Set the pod's user and labels, the variables with its name and uid, and how its image is pulled."""
        kubernetes, images = _import_kubernetes(), self.cluster.images
        kubernetes.set_security_context(task, run_as_user=UID, run_as_group=UID, run_as_non_root=True)
        labels = {**LABELS, COMPONENT_LABEL: step, **NO_SIDECAR, RUN_LABEL: RUN_ID}
        for key, value in {**self.cluster.labels, **labels}.items():
            kubernetes.add_pod_label(task, key, value)
        for name, path in {POD_NAME_VARIABLE: "metadata.name", "POD_UID": "metadata.uid",
                           "POD_NAMESPACE": "metadata.namespace"}.items():  # fmt: skip
            kubernetes.use_field_path_as_env(task, name, path)
        kubernetes.set_image_pull_policy(task, images.pull_policy)
        if images.pull_secrets:
            kubernetes.set_image_pull_secrets(task, list(images.pull_secrets))


def _set_display_options(step: str, task: Task) -> Task:
    task.set_display_name(step.capitalize())
    task.set_caching_options(False)
    return task


def _set_resources(task: Task, pod: Pod) -> None:
    task.set_cpu_request(to_kfp_cpu(pod.cpu))
    if pod.cpu_limit:
        task.set_cpu_limit(to_kfp_cpu(pod.cpu_limit))
    task.set_memory_request(to_kfp_memory(pod.memory))
    task.set_memory_limit(to_kfp_memory(pod.memory_limit or pod.memory))
    if pod.gpu:
        task.set_accelerator_type(pod.gpu_type)
        task.set_accelerator_limit(pod.gpu)


def to_kfp_cpu(quantity: str) -> str:
    """Return cores in a form that KFP takes: a number, or millicores."""
    if _KFP_CPU.fullmatch(quantity):
        return quantity
    millicores = math.ceil(round(parse_quantity(quantity) * 1000, 6))
    return f"{millicores}m" if millicores % 1000 else str(millicores // 1000)


def to_kfp_memory(quantity: str) -> str:
    """Return a quantity in a form that KFP takes: without a decimal point, and K for thousand; else in bytes."""
    return quantity if _KFP_MEMORY.fullmatch(quantity) else str(round(parse_quantity(quantity)))


def _mount_volumes(task: Task, pod: Pod, shm: str) -> None:
    kubernetes = _import_kubernetes()
    kubernetes.empty_dir_mount(task, "scratch", SCRATCH, size_limit=pod.ephemeral_storage or None)
    if shm:
        kubernetes.empty_dir_mount(task, "shm", "/dev/shm", medium="Memory", size_limit=shm)


def _set_node_constraints(task: Task, pod: Pod) -> None:
    kubernetes = _import_kubernetes()
    for key, value in pod.node_selector.items():
        kubernetes.add_node_selector(task, key, value)
    for toleration in pod.tolerations:
        seconds = toleration.get("tolerationSeconds")
        fields = {key: to_text(value) for key, value in toleration.items() if key != "tolerationSeconds"}
        kubernetes.add_toleration(task, toleration_seconds=seconds, **fields)


def _set_timeout(task: Task, seconds: int) -> None:
    """Limit the seconds of one attempt; 0: no limit."""
    if seconds:
        _import_kubernetes().set_timeout(task, seconds)


def _import_kubernetes() -> Any:
    import kfp.kubernetes  # a package of its own: the error of `from kfp import` would not name it

    return kfp.kubernetes


def supports_run_settings(version: str) -> bool:
    """Return whether a server of that release (2.17, 2.17.1) supports deadlines and lifetimes of whole runs."""
    return _parse_release(version) >= RUN_SETTINGS_SINCE


def supports_literals(version: str) -> bool:
    """Return whether a server of that release supports the choices of a parameter (`literals`), which the UI shows from
    2.17 on. An older one refuses the whole package for the unknown field."""
    return _parse_release(version) >= LITERALS_SINCE


def _parse_release(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2])
