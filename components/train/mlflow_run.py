"""Log a training as a run of an MLflow server, by its REST API: parameters, metrics of each epoch, the model's URI.

A server that does not answer, or refuses, never ends a training: it costs one warning, and nothing more is logged. A
training that is stopped and goes on continues its run, which is found by the model's fingerprint.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from ..step.progress import say
from ..storage.errors import MillError, TransientError
from ..storage.json_client import Json, MlflowClient, find_tracking_server
from ..storage.uri import redact
from .loop.history import TAGS, EpochRow

NONE = "none"
FINGERPRINT_TAG, MODEL_TAG = "imagemill.fingerprint", "imagemill.model"
_MAX_VALUE = 500
"""Characters of a parameter, which servers before MLflow 2.8 take."""
_MAX_PARAMS = 100
"""Parameters in a request, which MLflow takes."""


class MlflowRun:
    """The run of one training; without a server every method does nothing."""

    def __init__(self, server: str, fingerprint: str) -> None:
        self._server, self._fingerprint, self._run_id = server, fingerprint, ""
        self._client = MlflowClient(server) if server else None

    def start(self, experiment: str, name: str, params: Mapping[str, Any], tags: Mapping[str, str]) -> None:
        """Create the run, or go on with that of an earlier attempt of this training, which has its parameters."""
        if self._client is None:
            return
        with self._catch_errors() as client:
            response = client.call("GET", "/experiments/get-by-name", experiment_name=experiment)
            if response:
                experiment_id = response["experiment"]["experiment_id"]
            else:
                experiment_id = client.require("POST", "/experiments/create", {"name": experiment})["experiment_id"]
            query = f"tags.`{FINGERPRINT_TAG}` = '{self._fingerprint}' and attributes.status != 'FINISHED'"
            search = {"experiment_ids": [experiment_id], "filter": query, "max_results": 1}
            if earlier := client.require("POST", "/runs/search", search).get("runs"):
                self._run_id = earlier[0]["info"]["run_id"]
                client.require("POST", "/runs/update", {"run_id": self._run_id, "status": "RUNNING"})
                return
            tags = {FINGERPRINT_TAG: self._fingerprint, "mlflow.source.name": "imagemill train", **tags}
            body = {"experiment_id": experiment_id, "run_name": name, "start_time": _now(), "tags": _list_pairs(tags)}
            self._run_id = client.require("POST", "/runs/create", body)["run"]["info"]["run_id"]
            pairs = _list_pairs(params)
            for first in range(0, len(pairs), _MAX_PARAMS):
                self._log({"params": pairs[first : first + _MAX_PARAMS]})

    def log_epoch(self, row: EpochRow) -> None:
        """Log the numbers of an epoch that TensorBoard has too, at the epoch's number."""
        self._log_metrics({name: row[name] for name in TAGS if name in row}, int(row["epoch"]))

    def finish(self, uri: str, metrics: Mapping[str, float], best_epoch: int) -> None:
        """Log the model's URI and validation metrics, and mark the run as finished."""
        self._log_metrics({f"best_val_{name}": value for name, value in metrics.items()}, best_epoch)
        if self._run_id:
            with self._catch_errors():
                self._log({"tags": _list_pairs({MODEL_TAG: uri, "imagemill.best_epoch": best_epoch})})
                self._end("FINISHED")

    @contextmanager
    def mark_failures(self) -> Iterator[None]:
        """Mark the run as killed where the training is stopped and can go on, as failed for any other error."""
        try:
            yield
        except BaseException as error:
            if self._run_id:
                with self._catch_errors():
                    self._end("KILLED" if isinstance(error, TransientError) else "FAILED")
            raise

    def _log_metrics(self, values: Mapping[str, float], step: int) -> None:
        if self._run_id:
            with self._catch_errors():
                timestamp = _now()
                self._log({
                    "metrics": [
                        {"key": name, "value": float(value), "timestamp": timestamp, "step": step}
                        for name, value in values.items()
                    ]
                })  # fmt: skip

    def _log(self, body: Json) -> None:
        assert self._client
        self._client.require("POST", "/runs/log-batch", {"run_id": self._run_id, **body})

    def _end(self, status: str) -> None:
        assert self._client
        self._client.require("POST", "/runs/update", {"run_id": self._run_id, "status": status, "end_time": _now()})

    @contextmanager
    def _catch_errors(self) -> Iterator[MlflowClient]:
        """Turn the first error into a warning, after which nothing is logged."""
        assert self._client
        try:
            yield self._client
        except (MillError, KeyError, TypeError, AttributeError) as error:
            self._run_id = ""
            problem = str(error) if isinstance(error, MillError) else f"unexpected answer ({error!r})"
            say("train", f"warning: the training is not logged to MLflow at {redact(self._server)}: {problem}")


def open_run(option: str, fingerprint: str) -> MlflowRun:
    """Return the run of a training on the server of the option, else of MLFLOW_TRACKING_URI; idle without either."""
    return MlflowRun("" if option == NONE else option or find_tracking_server(), fingerprint)


def choose_experiment(name: str) -> str:
    """Return the experiment's name: MLFLOW_EXPERIMENT_NAME, else that of the data."""
    return os.environ.get("MLFLOW_EXPERIMENT_NAME") or name


def _list_pairs(values: Mapping[str, Any]) -> list[Json]:
    return [{"key": key, "value": str(value)[:_MAX_VALUE]} for key, value in values.items()]


def _now() -> int:
    """Return the time in milliseconds since 1970."""
    return round(time.time() * 1000)
