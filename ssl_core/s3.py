"""S3: one client for all threads, whole objects or an error, and boto's errors in plain words."""

from __future__ import annotations

import contextlib
import functools
import os
import threading
from collections.abc import Callable, Iterator
from typing import Any

from .errors import HeadwaterError

SCHEME = "s3://"
ATTEMPTS = 7  # in a row without a byte: half a minute
PAUSE = 0.5  # seconds before the second attempt; doubled for each further one
CHUNK = 2**16  # bytes; what has not filled one is lost when a connection stalls
CONNECT_TIMEOUT, READ_TIMEOUT = 5.0, 30.0  # seconds, the latter between two bytes
EXPIRED = {"ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "RequestExpired"}


class Missing(Exception):
    """There is no such object."""


class Stopped(Exception):
    """Nobody waits for this object any longer."""


@functools.lru_cache(maxsize=4)
def _client(endpoint: str, region: str, attempts: int) -> Any:
    import boto3
    from botocore.config import Config

    config = Config(
        connect_timeout=CONNECT_TIMEOUT,
        read_timeout=READ_TIMEOUT,
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
        raise _refused(ref, code) from None
    except NoCredentialsError:
        fix = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
        raise HeadwaterError(ref, "no S3 credentials were found", fix) from None
    except BotoCoreError as error:
        fix = "check that it runs and that AWS_ENDPOINT_URL is right, then run again"
        raise HeadwaterError(ref, f"S3 does not answer ({error})", fix) from None


def _refused(ref: str, code: str) -> HeadwaterError:
    if code in EXPIRED:
        fix = "renew them (AWS_SESSION_TOKEN too) and run again; what is finished is kept"
        return HeadwaterError(ref, f"the S3 credentials have expired ({code})", fix)
    if code == "RequestTimeTooSkewed":
        return HeadwaterError(ref, f"S3 refused ({code})", "set this machine's clock")
    if code in ("PreconditionFailed", "412"):
        rule = "changed while it was read"
        return HeadwaterError(ref, rule, "run again when nobody writes there")
    fix = "check the AWS_* credentials and their rights"
    return HeadwaterError(ref, f"S3 refused ({code})", fix)


def _passes(error: Exception) -> bool:
    """Whether to try again may help: a lost connection, a busy server, an answer cut short."""
    from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError

    if isinstance(error, ClientError):
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        return int(status) >= 500 or int(status) == 429
    return isinstance(error, BotoCoreError) and not isinstance(error, NoCredentialsError)


class _Download:
    """One object on its way: what has come, of how much, and of which version."""

    def __init__(self, ref: str, take: Callable[[bytes], object]) -> None:
        self.ref, self.take = ref, take
        self.got, self.size, self.etag = 0, -1, ""

    def go_on(self, sized: Callable[[int], None], stop: threading.Event) -> None:
        """One request for what has not come yet.

        Raises:
            HeadwaterError: what came is not the rest of the same object.
        """
        if self.got == self.size:
            return  # the connection broke after the last byte
        answer = self._request()
        if not self.got:  # another version may have come into its place
            self.size, self.etag = int(answer["ContentLength"]), answer.get("ETag", "")
            sized(self.size)
        for chunk in answer["Body"].iter_chunks(CHUNK):
            if stop.is_set():
                raise Stopped
            self.take(chunk)
            self.got += len(chunk)
        if self.got != self.size:
            rule = f"has {self.got:,} bytes, S3 announced {self.size:,}"
            raise HeadwaterError(self.ref, rule, "run again when nobody writes there")

    def _request(self) -> Any:
        """The rest must be of the version that the beginning was of."""
        bucket, key = split(self.ref)
        rest = {"Range": f"bytes={self.got}-"} if self.got else {}
        same = {"IfMatch": self.etag} if self.got and self.etag else {}
        answer = client(1).get_object(Bucket=bucket, Key=key, **rest, **same)
        if rest and answer["ResponseMetadata"]["HTTPStatusCode"] != 206:
            raise HeadwaterError(self.ref, "S3 ignores ranges", "use a server that knows them")
        if rest and answer.get("ETag", "") != self.etag:  # some servers ignore If-Match
            raise _refused(self.ref, "PreconditionFailed")
        return answer


def download(
    ref: str,
    take: Callable[[bytes], object],
    sized: Callable[[int], None] = lambda size: None,
    stop: threading.Event | None = None,
) -> None:
    """Hand an object's bytes to ``take``, in order; where the connection breaks, go on there.

    ``sized`` learns the size before any byte and may refuse it.

    Raises:
        Missing: there is no such object.
        HeadwaterError: S3 is dead or refuses, or the object changed meanwhile.
        Stopped: ``stop`` was set.
    """
    stop, whole, failures = stop or threading.Event(), _Download(ref, take), 0
    with errors(ref):
        while True:
            before = whole.got
            try:
                return whole.go_on(sized, stop)
            except Exception as error:
                failures = failures + 1 if whole.got == before else 1
                if failures >= ATTEMPTS or not _passes(error):
                    raise
                if stop.wait(PAUSE * 2 ** (failures - 1)):
                    raise Stopped from None
