"""`tests/e2e/run`: the command."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

from imagemill.components.dataset.manifest import code_version
from imagemill.components.storage.errors import EXIT_USER, MillError
from imagemill.pipelines.cluster.cluster_file import Cluster

from . import kfp, results, table
from .access.kube import Kube, KubeError
from .access.mirror import mirrored, say
from .options import Options, for_tests, parse, read_clusters
from .runner import run_all
from .runs import ARGO, KFP
from .scenario import Failed, Row, Scenario
from .scenarios import REGISTRY
from .scenarios.preflight import look_at_nodes
from .session import NotAllowed, Place, Session, refuse_unmarked, sweep

NO_CONFIG = "KUBECONFIG is not set"
MOST_AT_ONCE = 4


def main(words: Sequence[str] | None = None) -> int:
    """Run the command; return 0 if something passed and nothing failed, 1 otherwise, 2 if it could not begin."""
    return run(parse(sys.argv[1:] if words is None else words))


def run(options: Options) -> int:
    """Run what the options select; prints the table on stdout."""
    try:
        selected = REGISTRY.select(options.only)
        if options.list:
            print("".join(f"{scenario.name:<24} {scenario.description}\n" for scenario in selected), end="")
            return 0
        if not os.environ.get("KUBECONFIG"):
            raise NotAllowed(f"{NO_CONFIG}: it names the cluster to use")
        files = dict(zip((ARGO, KFP), read_clusters(options), strict=True))
        kubes = {cluster.namespace: Kube(cluster.namespace, options.context) for cluster in files.values()}
        _log_places(kubes, options)
        for kube in kubes.values():
            refuse_unmarked(kube, options.namespace_for_tests)
        if options.sweep:
            problems = kfp.sweep(options, files[KFP].namespace)
            problems += [problem for kube in kubes.values() for problem in sweep(kube)]
            print("".join(f"not deleted: {problem}\n" for problem in problems), end="", file=sys.stderr)
            return int(bool(problems))
        flags = {ARGO: "--cluster", KFP: "--kfp-cluster" if options.kfp_cluster else "--cluster"}
        clusters = {
            engine: for_tests(cluster, options.suffix, options.full_pods, flags[engine])
            for engine, cluster in files.items()
        }
    except (NotAllowed, KubeError, MillError, ValueError) as error:
        print(f"e2e: {error}", file=sys.stderr)
        return EXIT_USER
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    folder = options.out / f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{options.suffix}"
    folder.mkdir(parents=True)
    try:
        with _places(kubes, clusters) as places:
            session = Session(options, places, folder)
            look_at_nodes(session)
            return _run(session, selected)
    except (Failed, KubeError) as error:
        print(f"e2e: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"e2e: left as it is; tests/e2e/run --sweep deletes what session {options.suffix} made", file=sys.stderr)
        return 130
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def _places(kubes: dict[str, Kube], clusters: dict[str, Cluster]) -> Iterator[dict[str, Place]]:
    """Yield the places by engine; both have the same one if their files are equal."""
    with contextlib.ExitStack() as stack:
        mirrors = {name: stack.enter_context(mirrored(kube)) for name, kube in kubes.items()}
        places = {
            engine: Place(kubes[cluster.namespace], mirrors[cluster.namespace], cluster)
            for engine, cluster in clusters.items()
        }
        if clusters[ARGO] == clusters[KFP]:
            places[KFP] = places[ARGO]
        yield places


def _run(session: Session, selected: Sequence[Scenario]) -> int:
    began = time.monotonic()
    at_once = session.options.at_once or max(1, min(MOST_AT_ONCE, int(session.facts["cores"] // 2)))
    say(f"{len(selected)} scenarios, up to {at_once} at a time")
    rows = run_all(session, selected, at_once)
    seconds = time.monotonic() - began
    text = table.render(rows, seconds)
    (session.folder / "table.txt").write_text(table.render(rows, seconds, 160), encoding="utf-8")
    first = session.first
    context = {
        "context": first.kube.context, "server": first.kube.server,
        "namespaces": sorted({place.kube.namespace for place in session.places.values()}),
        "session": session.suffix, "imagemill": code_version(), "versions": session.facts.get("versions", {}),
        "seconds": round(seconds), "measured": session.measured,
        "ended": datetime.now(UTC).isoformat(timespec="seconds"),
    }  # fmt: skip
    table.write_json(session.folder / "table.json", rows, context)
    print(f"\n{text}\n{session.folder}/table.json")
    if session.options.results:
        _write_results(session, rows, session.options.results, seconds)
    return table.exit_code(rows)


def _write_results(session: Session, rows: Sequence[Row], file: Path, seconds: float) -> None:
    """Write the results of a full run; a part of one is no proof of the rest."""
    if session.options.only or session.stop.is_set():
        print(f"{file} is not written: not all scenarios were tried", file=sys.stderr)
        return
    results.write(session, rows, file, seconds)
    print(file)


def _log_places(kubes: dict[str, Kube], options: Options) -> None:
    first = next(iter(kubes.values()))
    say(f"context    {first.context} ({first.server})")
    say(f"namespace  {', '.join(kubes)}")
    say(f"session    {options.suffix}: all that is made is named or labeled with it, and nothing else is touched")


if __name__ == "__main__":
    sys.exit(main())
