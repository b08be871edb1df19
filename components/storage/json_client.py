"""Clients of servers with a JSON API over HTTP, MLflow's among them."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlencode

from .errors import MillError, TransientError, UserError, with_retry
from .uri import redact

TIMEOUT_S = 30.0
RETRY_S = 20.0
"""How long a request is retried."""
Json = dict[str, Any]


class JsonClient:
    """Client of one server's JSON API, which retries transient errors."""

    def __init__(self, url: str, prefix: str, headers: Mapping[str, str]) -> None:
        import urllib3

        self._url, self._prefix = url.rstrip("/"), prefix
        self._pool = urllib3.PoolManager(timeout=TIMEOUT_S, retries=False, headers=dict(headers))

    def call(self, method: str, path: str, body: Json | None = None, **query: str) -> Json | None:
        """Return the JSON object of the response, None for 404."""
        url = f"{self._url}{self._prefix}{path}{f'?{urlencode(query)}' if query else ''}"

        def send() -> Json | None:
            from urllib3.exceptions import HTTPError

            try:
                response = self._pool.request(method, url, json=body)
            except HTTPError as error:
                raise TransientError(f"{redact(self._url)}: no answer ({type(error).__name__})") from None
            if response.status == 404:
                return None
            if response.status >= 500 or response.status == 429:
                raise TransientError(f"{method} {redact(url)}: status {response.status}")
            if response.status >= 400:
                text = response.data.decode("utf-8", "replace")[:300]
                raise UserError(f"{method} {redact(url)}: status {response.status}: {' '.join(text.split())}")
            try:
                content = json.loads(response.data or b"{}")
            except ValueError:
                raise UserError(f"{method} {redact(url)}: expected JSON, found something else") from None
            return content if isinstance(content, dict) else {}

        return with_retry(send, f"{method} {redact(url)}", RETRY_S, service="registry")

    def require(self, method: str, path: str, body: Json | None = None, **query: str) -> Json:
        """Return the JSON object of the response; MillError for 404."""
        content = self.call(method, path, body, **query)
        if content is None:
            raise MillError(f"{method} {redact(self._url)}{self._prefix}{path}: status 404")
        return content


class MlflowClient(JsonClient):
    """Client of an MLflow server (docs: REST API 2.0), with the credentials of MLflow's own environment variables."""

    def __init__(self, url: str) -> None:
        token, user = (os.environ.get(f"MLFLOW_TRACKING_{name}", "") for name in ("TOKEN", "USERNAME"))
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        if user:
            password = os.environ.get("MLFLOW_TRACKING_PASSWORD", "")
            headers = {"Authorization": f"Basic {base64.b64encode(f'{user}:{password}'.encode()).decode()}"}
        super().__init__(url, "/api/2.0/mlflow", headers)


def find_tracking_server() -> str:
    """Return MLFLOW_TRACKING_URI where it is an http(s) URL, else an empty text."""
    tracking = os.environ.get("MLFLOW_TRACKING_URI", "")
    return tracking if tracking.startswith(("http://", "https://")) else ""
