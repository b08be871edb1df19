"""The Pod Security Standard `restricted`, which includes `baseline`, control by control.

https://kubernetes.io/docs/concepts/security/pod-security-standards/ in the order of that page. What the page allows
only to pods with a user namespace of their own, or only on Windows, is not allowed here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

VOLUMES = frozenset(
    ("configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret")
)
SYSCTLS = frozenset(
    ("kernel.shm_rmid_forced", "net.ipv4.ip_local_port_range", "net.ipv4.ip_unprivileged_port_start",
     "net.ipv4.tcp_syncookies", "net.ipv4.ping_group_range", "net.ipv4.ip_local_reserved_ports",
     "net.ipv4.tcp_keepalive_time", "net.ipv4.tcp_fin_timeout", "net.ipv4.tcp_keepalive_intvl",
     "net.ipv4.tcp_keepalive_probes", "net.ipv4.tcp_rmem", "net.ipv4.tcp_wmem")
)  # fmt: skip
SELINUX_TYPES = frozenset(("", "container_t", "container_init_t", "container_kvm_t", "container_engine_t"))
PROFILES = frozenset(("RuntimeDefault", "Localhost"))
APPARMOR = "container.apparmor.security.beta.kubernetes.io/"
LISTS = ("initContainers", "containers", "ephemeralContainers")

Json = Mapping[str, Any]


def violations(spec: Json, annotations: Json | None = None) -> list[str]:
    """List what `restricted` forbids in a pod, each as `field: what is wrong`; empty for a pod that it lets in."""
    pod = _context(spec)
    messages = [*_of_pod(spec, pod), *_of_annotations(annotations or {})]
    if not spec.get("containers"):
        messages.append("containers: none")
    for name in LISTS:
        for index, container in enumerate(spec.get(name) or ()):
            place = f"{name}[{container.get('name', index)}]"
            messages += [f"{place}.{message}" for message in _of_container(container, pod)]
    return messages


def _context(owner: Json) -> Json:
    return owner.get("securityContext") or {}


def _of_pod(spec: Json, pod: Json) -> Iterator[str]:
    for field in ("hostNetwork", "hostPID", "hostIPC"):
        if spec.get(field):
            yield f"{field}: true"
    for volume in spec.get("volumes") or ():
        for kind in sorted(set(volume) - {"name"} - VOLUMES):
            yield f"volumes[{volume.get('name')}]: a volume of kind {kind}"
    for sysctl in pod.get("sysctls") or ():
        if sysctl.get("name") not in SYSCTLS:
            yield f"securityContext.sysctls: {sysctl.get('name')}"
    yield from (f"securityContext.{wrong}" for wrong in _of_both(pod))


def _of_annotations(annotations: Json) -> Iterator[str]:
    for name, value in annotations.items():
        if name.startswith(APPARMOR) and value != "runtime/default" and not value.startswith("localhost/"):
            yield f"annotations[{name}]: {value}"


def _of_both(context: Json) -> Iterator[str]:
    """Yield violations of a pod's or a container's security context."""
    if (context.get("windowsOptions") or {}).get("hostProcess"):
        yield "windowsOptions.hostProcess: true"
    profile = context.get("appArmorProfile")
    if profile is not None and profile.get("type") not in PROFILES:
        yield f"appArmorProfile.type: {profile.get('type')}"
    selinux = context.get("seLinuxOptions") or {}
    if (selinux.get("type") or "") not in SELINUX_TYPES:
        yield f"seLinuxOptions.type: {selinux['type']}"
    for field in ("user", "role"):
        if selinux.get(field):
            yield f"seLinuxOptions.{field}: {selinux[field]}"
    profile = context.get("seccompProfile")
    if profile is not None and profile.get("type") not in PROFILES:
        yield f"seccompProfile.type: {profile.get('type')}"
    if context.get("runAsNonRoot") is False:
        yield "runAsNonRoot: false"
    if context.get("runAsUser") == 0:
        yield "runAsUser: 0"


def _of_container(container: Json, pod: Json) -> Iterator[str]:
    context = _context(container)
    yield from (f"securityContext.{wrong}" for wrong in _of_both(context))
    if context.get("privileged"):
        yield "securityContext.privileged: true"
    if context.get("procMount", "Default") != "Default":
        yield f"securityContext.procMount: {context['procMount']}"
    if context.get("allowPrivilegeEscalation") is not False:
        yield "securityContext.allowPrivilegeEscalation: not false"
    if context.get("runAsNonRoot", pod.get("runAsNonRoot")) is None:
        yield "securityContext.runAsNonRoot: neither here nor in the pod's"
    if context.get("seccompProfile", pod.get("seccompProfile")) is None:
        yield "securityContext.seccompProfile: neither here nor in the pod's"
    capabilities = context.get("capabilities") or {}
    if "ALL" not in (capabilities.get("drop") or ()):
        yield "securityContext.capabilities.drop: without ALL"
    for added in sorted(set(capabilities.get("add") or ()) - {"NET_BIND_SERVICE"}):
        yield f"securityContext.capabilities.add: {added}"
    for port in container.get("ports") or ():
        if port.get("hostPort"):
            yield f"ports: hostPort {port['hostPort']}"
    yield from _of_probes(container)


def _of_probes(container: Json) -> Iterator[str]:
    """Probes and lifecycle hooks may name no host: the kubelet would call what the pod's author can't reach."""
    handlers = {name: container.get(name) for name in ("livenessProbe", "readinessProbe", "startupProbe")}
    handlers |= {f"lifecycle.{name}": hook for name, hook in (container.get("lifecycle") or {}).items()}
    for name, handler in handlers.items():
        for way in ("httpGet", "tcpSocket"):
            if host := ((handler or {}).get(way) or {}).get("host"):
                yield f"{name}.{way}.host: {host}"
