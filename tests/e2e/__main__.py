"""`tests/e2e/run`: the command."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from datetime import UTC, datetime

from imagemill.components.store.errors import EXIT_USER, MillError
from imagemill.components.store.manifest import code_version

from . import kfp, kills, preflight, refusals, scenarios, table
from .kube import Kube, KubeError
from .mirror import mirrored, say
from .options import Options, for_tests, parse, read_cluster
from .preflight import REGISTRY, look_for_gpus
from .runner import run_all
from .scenario import Failed, Scenario
from .session import NotAllowed, Session, refuse_unmarked, sweep

NO_CONFIG = "KUBECONFIG is not set"
for _module in (scenarios, refusals, kills):  # after preflight's checks, which they need
    _module.register()


def main(words: Sequence[str] | None = None) -> int:
    """0: something passed and nothing failed; 1: otherwise; 2: it could not begin."""
    return run(parse(sys.argv[1:] if words is None else words))


def run(options: Options) -> int:
    """Run what the options select; prints the table on stdout."""
    try:
        selected = REGISTRY.select(options.only)
        if options.list:
            print("".join(f"{one.name:<20} {one.about}\n" for one in selected), end="")
            return 0
        if not os.environ.get("KUBECONFIG"):
            raise NotAllowed(f"{NO_CONFIG}: it names the cluster to use")
        cluster = read_cluster(options)
        kube = Kube(cluster.namespace, options.context)
        _say_where(kube, options)
        refuse_unmarked(kube, options.namespace_for_tests)
        if options.sweep:
            problems = [*kfp.sweep(options, cluster.namespace), *sweep(kube)]
            print("".join(f"not deleted: {problem}\n" for problem in problems), end="", file=sys.stderr)
            return int(bool(problems))
        cluster = for_tests(cluster, options.suffix, options.full_pods)
    except (NotAllowed, KubeError, MillError, ValueError) as error:
        print(f"e2e: {error}", file=sys.stderr)
        return EXIT_USER
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    folder = options.out / f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{options.suffix}"
    folder.mkdir(parents=True)
    try:
        with mirrored(kube) as mirror:
            session = Session(options, kube, mirror, cluster, folder)
            look_for_gpus(session)
            return _run(session, selected)
    except (Failed, KubeError) as error:
        print(f"e2e: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"e2e: left as it is; tests/e2e/run --sweep deletes what session {options.suffix} made", file=sys.stderr)
        return 130
    finally:
        signal.signal(signal.SIGTERM, before)


def _run(session: Session, selected: Sequence[Scenario]) -> int:
    rows = run_all(session, selected)
    text = table.render(rows)
    (session.folder / "table.txt").write_text(table.render(rows, 160), encoding="utf-8")
    about = {
        "context": session.kube.context, "server": session.kube.server, "namespace": session.kube.namespace,
        "session": session.suffix, "imagemill": code_version(),
        "ended": datetime.now(UTC).isoformat(timespec="seconds"),
    }  # fmt: skip
    table.write_json(session.folder / "table.json", rows, about)
    print(f"\n{text}\n{session.folder}/table.json")
    return table.exit_code(rows)


def _say_where(kube: Kube, options: Options) -> None:
    say(f"context    {kube.context} ({kube.server})")
    say(f"namespace  {kube.namespace}")
    say(f"session    {options.suffix}: all that is made is named or labelled with it, and nothing else is touched")


__all__ = ["main", "preflight", "run"]

if __name__ == "__main__":
    sys.exit(main())
