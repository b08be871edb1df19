"""The pods of a KFP run, from the cluster's file: image, resources, volumes, credentials, identity, deadlines, retries.

What Kubeflow's API server adds to each pod itself (read in its sources): the label `pipeline/runid`, the annotation
that keeps Istio's sidecar out, and from 2.16 on no privilege escalation, all capabilities dropped and the seccomp
profile RuntimeDefault. With the user set here that is all that Pod Security `restricted` asks for; an older server's
pods it refuses. KFP has no word for a read-only root file system, for ephemeral storage nor for a service account of
one step. Its retries have a number and no policy: which failures are tried again is the Argo controller's default
(doctor/argo_settings.py).
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .cluster import LABELS, RUN_LABEL, SCRATCH, TOKEN_KEY, UID, Cluster, Pod
from .first_step import CHANGED
from .kfp_server import ARRIVED, SENT, knows_whole_runs
from .parameters import RunParameters
from .pod_settings import cluster_variable
from .pods import NO_SIDECAR, place_env, rayjob_seconds
from .settings import parse_quantity, to_text
from .shm import shm_size

if TYPE_CHECKING:
    from kfp import dsl

Task = Any
"""A `dsl.PipelineTask`."""
RUN_ID = "{{workflow.uid}}"
"""The run's id in a label. Placeholders of KFP's own ({{$.pipeline_job_uuid}}) are not resolved there; this one KFP's
API server replaces in the whole workflow, and gives its steps the same id. Argo, were it left, would replace it too."""
RETRY_BACKOFF = "30s"
_KFP_CPU = re.compile(r"\d+(\.\d+)?m?")
_KFP_MEMORY = re.compile(r"\d+([EPTGMK]i?)?")


class Here:
    """No cluster: a local runner, which knows neither pods nor retries, and finishes by itself."""

    def place(self, step: str, task: Task) -> Task:
        return _titled(step, task)

    def finishing(self, make: Callable[[], Task]) -> contextlib.AbstractContextManager[Any]:
        return contextlib.nullcontext()

    def if_changed(self, download: Task) -> contextlib.AbstractContextManager[Any]:
        """All steps: each returns at once where it has nothing to do. Locally KFP takes a condition on a named output
        for false, without a word."""
        return contextlib.nullcontext()

    def config(self) -> dsl.PipelineConfig | None:
        return None


@dataclass(frozen=True)
class OnCluster:
    """Places tasks as a `Cluster` says; `parameters` are the parameters that become the package's defaults."""

    of: Cluster
    parameters: RunParameters

    def place(self, step: str, task: Task) -> Task:
        if step == "resize" and self.of.ray.mode != "pod":
            return self._launcher(task)
        return self._in_pod(step, task, self.of.image_of(step), self.of.steps[step])

    def config(self) -> dsl.PipelineConfig | None:
        """The run as a whole: the longest that it may take, and how long the workflow stays to be looked at."""
        from kfp import dsl

        limits = self.of.limits
        if not knows_whole_runs(self.of.kfp.version):
            return None
        return dsl.PipelineConfig(
            active_deadline_seconds=limits.run_deadline_seconds or None,
            ttl_seconds_after_success=limits.keep_succeeded_seconds or None,
            ttl_seconds_after_failure=limits.keep_failed_seconds or None,
        )

    def finishing(self, make: Callable[[], Task]) -> contextlib.AbstractContextManager[Any]:
        """The group of all steps, after which the exit step comes however they end."""
        from kfp import dsl

        exit_step = self._in_pod("finish", make(), self.of.image("cpu"), self.of.small)
        group: contextlib.AbstractContextManager[Any] = dsl.ExitHandler(exit_step, name="Training")
        return group

    def if_changed(self, download: Task) -> contextlib.AbstractContextManager[Any]:
        """The group of the steps after download, which is left out where nothing has changed."""
        from kfp import dsl

        group: contextlib.AbstractContextManager[Any] = dsl.If(
            download.outputs["changed"] == CHANGED, name="What has changed"
        )
        return group

    def _launcher(self, task: Task) -> Task:
        """Resizing elsewhere, or perhaps: the pod that starts it and waits, in the image that it does so with."""
        if self.of.ray.mode == "address":  # Ray's own client, of the same version as the cluster
            if secret := self.of.ray.token_secret:
                _kubernetes().use_secret_as_env(task, secret, {TOKEN_KEY: "RAY_AUTH_TOKEN"})
            return self._in_pod("resize", task, self.of.image("ray"), self.of.small)
        auto = self.of.ray.mode == "auto"  # then small data is resized in this pod, by Ray
        pod = self.of.steps["resize"] if auto else self.of.small
        self._in_pod("resize", task, self.of.image("ray" if auto else "cpu"), pod)
        if not pod.deadline_seconds:
            _timeout(task, rayjob_seconds(self.of))
        return task

    def _in_pod(self, step: str, task: Task, image: str, pod: Pod) -> Task:
        _titled(step, task)
        task.set_container_image(image)
        if self.of.limits.lost_pod_retries:
            task.set_retry(self.of.limits.lost_pod_retries, backoff_duration=RETRY_BACKOFF, backoff_factor=2.0)
        _resources(task, pod)
        _volumes(task, pod, shm_size(step, pod, self.parameters))
        _schedule(task, pod)
        whole = 0 if knows_whole_runs(self.of.kfp.version) else self.of.limits.run_deadline_seconds
        _timeout(task, pod.deadline_seconds or whole)
        task.set_env_variable(SENT, self.of.kfp.version)
        if step in ("resize", "finish") and self.of.ray.mode != "pod":
            for name, value in cluster_variable(self.of).items():
                task.set_env_variable(name, value)
        self._storage(task)
        self._identity(step, task)
        return task

    def _storage(self, task: Task) -> None:
        storage = self.of.storage
        if storage.endpoint:
            task.set_env_variable("AWS_ENDPOINT_URL", storage.endpoint)
        for name, value in place_env(self.of).items():
            task.set_env_variable(name, value)
        if storage.secret:
            keys = {storage.access_key: "AWS_ACCESS_KEY_ID", storage.secret_key: "AWS_SECRET_ACCESS_KEY"}
            _kubernetes().use_secret_as_env(task, storage.secret, keys)

    def _identity(self, step: str, task: Task) -> None:
        """Who the pod is: its user, its labels, its name for those that own something by it, where its image is."""
        kubernetes, images = _kubernetes(), self.of.images
        kubernetes.set_security_context(task, run_as_user=UID, run_as_group=UID, run_as_non_root=True)
        ours = {**LABELS, "app.kubernetes.io/component": step, **NO_SIDECAR, RUN_LABEL: RUN_ID}
        for key, value in {**self.of.labels, **ours}.items():
            kubernetes.add_pod_label(task, key, value)
        for name, path in {ARRIVED: "metadata.name", "POD_UID": "metadata.uid",
                           "POD_NAMESPACE": "metadata.namespace"}.items():  # fmt: skip
            kubernetes.use_field_path_as_env(task, name, path)
        kubernetes.set_image_pull_policy(task, images.pull_policy)
        if images.pull_secrets:
            kubernetes.set_image_pull_secrets(task, list(images.pull_secrets))


def _titled(step: str, task: Task) -> Task:
    task.set_display_name(step.capitalize())
    task.set_caching_options(False)
    return task


def _resources(task: Task, pod: Pod) -> None:
    task.set_cpu_request(kfp_cpu(pod.cpu))
    if pod.cpu_limit:
        task.set_cpu_limit(kfp_cpu(pod.cpu_limit))
    task.set_memory_request(kfp_memory(pod.memory))
    task.set_memory_limit(kfp_memory(pod.memory_limit or pod.memory))
    if pod.gpu:
        task.set_accelerator_type(pod.gpu_type)
        task.set_accelerator_limit(pod.gpu)


def kfp_cpu(quantity: str) -> str:
    """Cores in a form that KFP takes: a number, or thousandths."""
    if _KFP_CPU.fullmatch(quantity):
        return quantity
    thousandths = math.ceil(round(parse_quantity(quantity) * 1000, 6))
    return f"{thousandths}m" if thousandths % 1000 else str(thousandths // 1000)


def kfp_memory(quantity: str) -> str:
    """A quantity in a form that KFP takes: without a decimal point, and K for thousand; else in bytes."""
    return quantity if _KFP_MEMORY.fullmatch(quantity) else str(round(parse_quantity(quantity)))


def _volumes(task: Task, pod: Pod, shm: str) -> None:
    kubernetes = _kubernetes()
    kubernetes.empty_dir_mount(task, "scratch", SCRATCH, size_limit=pod.ephemeral_storage or None)
    if shm:
        kubernetes.empty_dir_mount(task, "shm", "/dev/shm", medium="Memory", size_limit=shm)


def _schedule(task: Task, pod: Pod) -> None:
    kubernetes = _kubernetes()
    for key, value in pod.node_selector.items():
        kubernetes.add_node_selector(task, key, value)
    for toleration in pod.tolerations:
        seconds = toleration.get("tolerationSeconds")
        rest = {key: to_text(value) for key, value in toleration.items() if key != "tolerationSeconds"}
        kubernetes.add_toleration(task, toleration_seconds=seconds, **rest)


def _timeout(task: Task, seconds: int) -> None:
    """The longest that one try may take, if it is limited."""
    if seconds:
        _kubernetes().set_timeout(task, seconds)


def _kubernetes() -> Any:
    import kfp.kubernetes  # a package of its own: `from kfp import` would not say that it is missing

    return kfp.kubernetes
