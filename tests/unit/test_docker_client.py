"""Removal of a run's containers at its end and after a kill, against a test server of Docker's API."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import Any

import docker_api
import pytest

from imagemill.pipelines.cluster.cluster_file import LABELS, RUN_LABEL
from imagemill.pipelines.docker.client import STEP_LABEL, connect_engine, remove_containers, remove_never_started

engine = docker_api.engine


@pytest.fixture
def client(engine: docker_api.Engine) -> Iterator[Any]:
    with closing(connect_engine("test")) as connection:
        yield connection


def container(state: str = "running", run: str = "run-1", hours: float = 0) -> dict[str, Any]:
    created = (datetime.now(UTC) - timedelta(hours=hours)).strftime("%Y-%m-%dT%H:%M:%S.123456789Z")
    return {"state": state, "created": created, "labels": {**LABELS, RUN_LABEL: run, STEP_LABEL: "train"}}


def test_containers_are_stopped_before_they_are_removed(
    engine: docker_api.Engine, client: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    engine.containers |= {"mine": container(), "dead": container("exited"), "other": container(run="run-2")}
    remove_containers(client, "run-1")
    assert list(engine.containers) == ["other"]
    calls = [call.partition("/containers/")[2] for call in engine.asked]
    assert calls[0] == "mine/stop?t=30"
    assert sorted(calls[1:]) == [f"{name}?v=True&link=False&force=True" for name in ("dead", "mine")]
    assert capsys.readouterr().err == "stopping train, which may take 30 s; Ctrl-C: at once\n"
    remove_containers(client, "run-1")
    assert len(engine.asked) == 3 and capsys.readouterr().err == ""


def test_ctrl_c_meanwhile_means_at_once(
    engine: docker_api.Engine, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from docker.models.containers import Container

    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Container, "stop", interrupted)
    engine.containers["mine"] = container()
    with pytest.raises(KeyboardInterrupt):
        remove_containers(client, "run-1")
    assert not engine.containers


def test_lost_engine_is_reported_with_the_remaining_containers(
    engine: docker_api.Engine, client: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    engine.fails = "/containers/json$"
    remove_containers(client, "run-1")
    assert "containers of the run may be left (docker ps --filter label=imagemill.io/run=run-1)" in (
        capsys.readouterr().err
    )


def test_old_containers_that_were_never_started_are_removed(engine: docker_api.Engine, client: Any) -> None:
    """Containers that are about to start, by the engine's clock, and containers of others are kept."""
    foreign = container("created", hours=5) | {"labels": {RUN_LABEL: "another's"}}
    engine.containers |= {
        "left": container("created", hours=2), "young": container("created", hours=0.5),
        "running": container(hours=30), "theirs": foreign,
    }  # fmt: skip
    early = (datetime.now(UTC) - timedelta(hours=1.5)).isoformat()
    remove_never_started(client, {"SystemTime": early})
    assert len(engine.containers) == 4
    remove_never_started(client, {})
    assert list(engine.containers) == ["young", "running", "theirs"]
