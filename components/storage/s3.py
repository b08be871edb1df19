"""S3 as an object store: boto3 for objects and conditional PUTs, pyarrow's filesystem for random access.

Endpoint, region and credentials come from the standard AWS variables and the default chain, nothing else.
"""

from __future__ import annotations

import contextlib
import mimetypes
import os
import re
import tempfile
from collections.abc import Iterator, MutableSequence, Sequence
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import MillError, TransientError, UserError, with_retry
from .protocol import Entry
from .uri import split_s3

if TYPE_CHECKING:
    import pyarrow as pa

CONNECT_TIMEOUT_S = 3
READ_TIMEOUT_S = 10
_REFUSED_CODES = {
    "AccessDenied", "403", "Forbidden", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken",
    "InvalidToken", "401", "Unauthorized", "AllAccessDisabled", "AccountProblem",
}  # fmt: skip
_ABSENT_CODES = {"NoSuchKey", "404", "NotFound"}
_TRANSIENT_CODES = {"ConditionalRequestConflict", "RequestTimeout", "SlowDown", "InternalError", "ServiceUnavailable"}
MAX_DELETED_KEYS = 1000
"""Maximum number of keys in one DeleteObjects request."""


class S3Store:
    """The S3 store, through one client of boto3 and one of pyarrow; both are safe to use from several threads."""

    def __init__(self) -> None:
        self._client = _client({})
        self.region = str(self._client.meta.region_name)
        self.endpoint = str(self._client.meta.endpoint_url)
        """Empty for AWS itself, else as boto3 resolved it from the environment or a profile of the config file."""
        if self.endpoint.rstrip("/").endswith((".amazonaws.com", ".amazonaws.com.cn")):
            self.endpoint = ""
        else:
            # Stores other than AWS seldom understand the newer default checksums; both clients read these.
            os.environ.setdefault("AWS_REQUEST_CHECKSUM_CALCULATION", "when_required")
            os.environ.setdefault("AWS_RESPONSE_CHECKSUM_VALIDATION", "when_required")
            self._client = _client({"addressing_style": "path"})

    def read(self, uri: str) -> bytes:
        bucket, key = split_s3(uri)

        def get() -> bytes:
            with map_s3_errors(uri):
                body: bytes = self._client.get_object(Bucket=bucket, Key=key)["Body"].read()
                return body

        return with_retry(get, f"read {uri}")

    def open(self, uri: str) -> pa.NativeFile:
        filesystem = _pyarrow_s3()

        def open_file() -> pa.NativeFile:
            with map_s3_errors(uri):
                return filesystem.open_input_file("/".join(split_s3(uri)))

        return with_retry(open_file, f"open {uri}")

    def stat(self, uri: str) -> Entry | None:
        bucket, key = split_s3(uri)

        def head() -> Entry | None:
            try:
                with map_s3_errors(uri):
                    response = self._client.head_object(Bucket=bucket, Key=key)
            except FileNotFoundError:
                return None
            modified = response["LastModified"].timestamp()
            return Entry(uri, response["ContentLength"], response["ETag"].strip('"'), modified)

        return with_retry(head, f"look up {uri}")

    def list(self, uri: str) -> Iterator[Entry]:
        bucket, key = split_s3(uri)
        request: dict[str, Any] = {"Bucket": bucket, "Prefix": f"{key}/" if key else ""}
        while True:
            page = with_retry(lambda: self._list_page(uri, request), f"list {uri}")
            for item in page.get("Contents", ()):
                if not item["Key"].endswith("/"):  # a console's folder marker
                    modified = item["LastModified"].timestamp()
                    yield Entry(f"s3://{bucket}/{item['Key']}", item["Size"], item["ETag"].strip('"'), modified)
            if not page.get("IsTruncated"):
                return
            request["ContinuationToken"] = page["NextContinuationToken"]

    def _list_page(self, uri: str, request: dict[str, Any]) -> dict[str, Any]:
        with map_s3_errors(uri):
            page: dict[str, Any] = self._client.list_objects_v2(**request)
            return page

    def put(self, uri: str, data: bytes) -> None:
        bucket, key = split_s3(uri)
        # A browser that opens the report or a log from the bucket should show it, not save it.
        content_type = mimetypes.guess_type(key)[0] or "application/octet-stream"

        def write() -> None:
            with map_s3_errors(uri):
                self._client.put_object(Bucket=bucket, Key=key, Body=data, ContentType=content_type)

        with_retry(write, f"write {uri}")

    def put_if_absent(self, uri: str, data: bytes) -> bool:
        """Send a plain PUT with `If-None-Match: *`: 412 = another writer was first, 409 = at the same time, retried."""
        bucket, key = split_s3(uri)
        attempts = 0

        def write() -> bool:
            nonlocal attempts
            attempts += 1
            try:
                with map_s3_errors(uri):
                    self._client.put_object(Bucket=bucket, Key=key, Body=data, IfNoneMatch="*")
            except FileExistsError:
                # After a lost answer the object may be our own first attempt.
                return attempts > 1 and self.read(uri) == data
            return True

        return with_retry(write, f"write {uri}")

    def discard(self, uri: str) -> None:
        from botocore import exceptions as boto

        bucket, key = split_s3(uri)
        with contextlib.suppress(boto.BotoCoreError, boto.ClientError):
            self._client.delete_object(Bucket=bucket, Key=key)

    def delete(self, uris: Sequence[str]) -> None:
        """Send a request for each 1,000 objects, all of one bucket; what the store left then is asked for again."""
        for start in range(0, len(uris), MAX_DELETED_KEYS):
            batch = uris[start : start + MAX_DELETED_KEYS]
            bucket, pending = split_s3(batch[0])[0], [split_s3(uri)[1] for uri in batch]
            with_retry(partial(self._delete_keys, bucket, pending), f"delete objects of s3://{bucket}")

    def _delete_keys(self, bucket: str, pending: MutableSequence[str]) -> None:
        """Delete the keys and remove them from `pending`; raise the error of the first one that is left."""
        with map_s3_errors(f"s3://{bucket}"):
            objects = {"Objects": [{"Key": key} for key in pending], "Quiet": True}
            response = self._client.delete_objects(Bucket=bucket, Delete=objects)
        codes = {error["Key"]: str(error.get("Code", "")) for error in response.get("Errors", ())}
        pending[:] = [key for key, code in codes.items() if code not in _ABSENT_CODES]
        if pending:
            raise _error_for_code(f"s3://{bucket}/{pending[0]}", codes[pending[0]])

    def publish(self, path: Path, uri: str) -> None:
        """Upload, multipart above boto3's threshold; the name is a hash, so a second writer changes nothing."""
        bucket, key = split_s3(uri)
        size = path.stat().st_size

        def upload() -> None:
            with map_s3_errors(uri):
                self._client.upload_file(str(path), bucket, key)

        existing = self.stat(uri)
        if existing is None or existing.size != size:
            with_retry(upload, f"upload {uri}")
        path.unlink()

    def scratch(self, uri: str) -> Path:
        return Path(tempfile.mkdtemp(prefix="imagemill-"))


def _client(options: Any) -> Any:
    import boto3
    from botocore.config import Config

    config = Config(
        connect_timeout=CONNECT_TIMEOUT_S,
        read_timeout=READ_TIMEOUT_S,
        max_pool_connections=32,
        retries={"total_max_attempts": 1},  # the retries are ours, under one deadline
        s3=options,
    )
    with map_s3_errors("s3"):
        # A session of its own: the default one would keep the credentials that the process had first.
        return boto3.session.Session().client("s3", config=config)


@cache
def shared_s3() -> S3Store:
    return S3Store()


@cache
def _pyarrow_s3() -> Any:
    """Return Arrow's client for the same store as boto3's."""
    from pyarrow import fs

    store = shared_s3()
    options: dict[str, Any] = {"connect_timeout": CONNECT_TIMEOUT_S, "request_timeout": READ_TIMEOUT_S}
    if store.endpoint:
        scheme, _, address = store.endpoint.rstrip("/").partition("://")
        options |= {"endpoint_override": address, "scheme": scheme}
    options["region"] = "us-east-1" if store.region == "aws-global" else store.region
    return fs.S3FileSystem(**options, retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=2))


@contextlib.contextmanager
def map_s3_errors(uri: str) -> Iterator[None]:
    """Map botocore's and Arrow's errors to ours; no message holds a key, a header or a signed URL."""
    from boto3.exceptions import S3UploadFailedError
    from botocore import exceptions as boto

    try:
        yield
    except boto.ClientError as error:
        raise _client_error(uri, error) from None
    except S3UploadFailedError as error:
        cause = error.__context__
        if isinstance(cause, boto.ClientError):
            raise _client_error(uri, cause) from None
        raise TransientError(f"{uri}: the upload failed") from None
    except (boto.NoCredentialsError, boto.PartialCredentialsError, boto.CredentialRetrievalError) as error:
        raise UserError(
            f"{uri}: expected S3 credentials (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile, or an "
            f"instance role), found none that work: {error}"
        ) from None
    except (boto.ProfileNotFound, boto.InvalidRegionError, boto.NoRegionError, boto.ParamValidationError) as error:
        raise UserError(f"{uri}: {error}") from None
    except (boto.HTTPClientError, boto.ReadTimeoutError, boto.ResponseStreamingError, boto.ConnectionError) as error:
        raise TransientError(f"{uri}: the store does not answer ({type(error).__name__})") from None
    except ValueError as error:  # botocore: "Invalid endpoint: …"
        if "endpoint" not in str(error).lower():
            raise
        raise UserError(f"AWS_ENDPOINT_URL: {error}") from None
    except OSError as error:
        if isinstance(error, FileNotFoundError | FileExistsError):
            raise
        raise _arrow_error(uri, error) from None


def _client_error(uri: str, error: Any) -> Exception:
    code = str(error.response.get("Error", {}).get("Code", ""))
    return _error_for_code(uri, code, error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _error_for_code(uri: str, code: str, status: int = 0) -> Exception:
    """Map a code of S3; `status`: of the HTTP response, 0 for one key of a batch."""
    if code in _ABSENT_CODES:
        return FileNotFoundError(uri)
    if code == "NoSuchBucket":
        return UserError(f"{uri}: expected an existing bucket, found none named {split_s3(uri)[0]!r}")
    if code == "InvalidBucketName":
        return UserError(f"{uri}: {split_s3(uri)[0]!r} is no valid bucket name")
    if code in ("PreconditionFailed", "412"):
        return FileExistsError(uri)
    if code in _REFUSED_CODES or status in (401, 403):
        return UserError(f"{uri}: expected credentials that may use it, found ones that the store refuses ({code})")
    if code in _TRANSIENT_CODES or status in (409, 429) or status >= 500:
        return TransientError(f"{uri}: the store answered {code or status}")
    return MillError(f"{uri}: the store answered {code or status}")


def _arrow_error(uri: str, error: OSError) -> Exception:
    """Map an error by the AWS error type in Arrow's message: `AWS Error ACCESS_DENIED during HeadObject operation`."""
    match = re.search(r"AWS Error ([A-Z_ ]+?)(?: \(HTTP status (\d+)\))? during", str(error))
    code, status = (match.group(1), match.group(2) or "") if match else ("", "")
    if code in ("NO_SUCH_KEY", "RESOURCE_NOT_FOUND") or status == "404":
        return FileNotFoundError(uri)
    if code in ("ACCESS_DENIED", "INVALID_ACCESS_KEY_ID", "SIGNATURE_DOES_NOT_MATCH", "INVALID_CLIENT_TOKEN_ID"):
        return UserError(f"{uri}: expected credentials that may use it, found ones that the store refuses ({code})")
    if code:
        return TransientError(f"{uri}: the store answered {code} {status}".rstrip())
    return error
