"""S3: one client for all threads, and boto's errors in plain words."""

from __future__ import annotations

import contextlib
import functools
import os
import threading
from collections.abc import Iterator
from typing import Any

from .errors import HeadwaterError

SCHEME = "s3://"


class Missing(Exception):
    """There is no such object."""


@functools.lru_cache(maxsize=4)
def _client(endpoint: str, region: str, attempts: int) -> Any:
    import boto3
    from botocore.config import Config

    config = Config(
        connect_timeout=5,
        read_timeout=30,
        max_pool_connections=32,
        retries={"total_max_attempts": attempts, "mode": "standard"},
    )
    session = boto3.session.Session()  # the default session is not safe among threads
    region = session.region_name or region
    return session.client("s3", endpoint_url=endpoint or None, region_name=region, config=config)


_CLIENT_LOCK = threading.Lock()


def client(attempts: int = 4) -> Any:
    """A boto3 client, shared by threads; honours AWS_ENDPOINT_URL and the usual variables.

    It tries a request up to ``attempts`` times.
    """
    with _CLIENT_LOCK, errors("S3"):
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL", "")
        return _client(endpoint, "us-east-1", attempts)


def split(ref: str) -> tuple[str, str]:
    """``s3://bucket/key`` -> (bucket, key)."""
    bucket, _, key = ref.removeprefix(SCHEME).partition("/")
    return bucket, key


@contextlib.contextmanager
def errors(ref: str) -> Iterator[None]:
    """Turn boto's errors into Missing (this object is gone) or HeadwaterError (S3 itself is)."""
    from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError

    try:
        yield
    except ClientError as error:
        code = str(error.response.get("Error", {}).get("Code", ""))
        if code in ("NoSuchKey", "404"):
            raise Missing(ref) from None
        if code == "NoSuchBucket":
            rule = "its bucket does not exist"
            raise HeadwaterError(ref, rule, "check the address and AWS_ENDPOINT_URL") from None
        fix = "check the AWS_* credentials and their rights"
        raise HeadwaterError(ref, f"S3 refused ({code})", fix) from None
    except NoCredentialsError:
        fix = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
        raise HeadwaterError(ref, "no S3 credentials were found", fix) from None
    except BotoCoreError as error:
        fix = "check that it runs and that AWS_ENDPOINT_URL is right, then run again"
        raise HeadwaterError(ref, f"S3 does not answer ({error})", fix) from None


def refusal() -> type[Any]:
    """boto's class of S3's own errors."""
    from botocore.exceptions import ClientError

    found: type[Any] = ClientError
    return found


def passes(error: Exception) -> bool:
    """Whether to try again may help: a lost connection, a busy server, an answer cut short."""
    from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError

    if isinstance(error, ClientError):
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        return int(status) >= 500 or int(status) == 429
    return isinstance(error, BotoCoreError) and not isinstance(error, NoCredentialsError)
