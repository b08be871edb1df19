"""Evidence of a failed scenario: events, pods, workflows, RayJobs and the ends of the logs, in a folder."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from .access.kube import Doc, KubeError, labels_of, name_of
from .options import E2E_LABEL
from .runs import last_words, step_of, uid_of

if TYPE_CHECKING:
    from .session import Trial

LINES = 400
_KINDS = ("workflows", "pods", "rayjobs", "rayclusters")


def save(trial: Trial, folder: Path, error: str) -> None:
    """Write all that is known of the objects of a scenario; an error of reading is written in its place."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "error.txt").write_text(error.rstrip() + "\n", encoding="utf-8")
    with contextlib.suppress(KubeError):
        trial.mirror.refresh(*_KINDS, "events")
    documents_by_kind = {
        kind: [document for document in trial.mirror.seen(kind) if _is_own(trial, document)] for kind in _KINDS
    }
    for kind, documents in documents_by_kind.items():
        for document in documents:
            document.get("metadata", {}).pop("managedFields", None)
        if documents:
            text = json.dumps(documents, indent=1, ensure_ascii=False)
            (folder / f"{kind}.json").write_text(text + "\n", encoding="utf-8")
    names = {name_of(document) for documents in documents_by_kind.values() for document in documents}
    (folder / "events.txt").write_text(_format_events(trial.mirror.seen("events"), names), encoding="utf-8")
    (folder / "pods.txt").write_text("".join(map(_format_pod, documents_by_kind["pods"])), encoding="utf-8")
    living = {uid_of(pod) for pod in trial.mirror.now("pods")}
    for pod in documents_by_kind["pods"]:
        if uid_of(pod) in living:
            _save_logs(trial, folder, pod)


def _is_own(trial: Trial, document: Doc) -> bool:
    """Return whether a document belongs to one of the scenario's runs, or was made by the scenario."""
    name = name_of(document)
    if any(run.owns(document) or run.workflow == name for run in trial.runs):
        return True
    return trial.has_created(name) and labels_of(document).get(E2E_LABEL) == trial.session.suffix


def _format_events(events: Iterable[Doc], names: set[str]) -> str:
    """Return the lines of the events of the named objects, in the order of their time."""
    lines = []
    for event in events:
        involved = event.get("involvedObject") or {}
        if involved.get("name") in names:
            time = (
                event.get("lastTimestamp") or event.get("eventTime") or event["metadata"].get("creationTimestamp", "")
            )
            message = " ".join(str(event.get("message", "")).split())
            lines.append(f"{time} {event.get('type', '')} {involved.get('kind', '')}/{involved['name']} "
                         f"{event.get('reason', '')}: {message}\n")  # fmt: skip
    return "".join(sorted(lines))


def _format_pod(pod: Doc) -> str:
    status = pod.get("status") or {}
    created = pod["metadata"].get("creationTimestamp", "")
    return f"{created} {step_of(pod) or '-':<10} {status.get('phase', ''):<9} {name_of(pod)}: {last_words(pod)}\n"


def _save_logs(trial: Trial, folder: Path, pod: Doc) -> None:
    spec = pod["spec"]
    ended_well = (pod.get("status") or {}).get("phase") == "Succeeded"
    for container in [] if ended_well else [*(spec.get("initContainers") or ()), *spec["containers"]]:
        try:
            text = trial.kube.log(name_of(pod), container["name"], LINES)
        except KubeError as error:
            text = f"(no log: {error})\n"
        (folder / f"{name_of(pod)}.{container['name']}.log").write_text(text, encoding="utf-8")
