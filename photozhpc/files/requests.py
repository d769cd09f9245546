"""Requests to S3 and web servers through fsspec: what to try again, and faults as one line."""

import asyncio
import errno
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

from photozhpc.errors import StorageError, one_line
from photozhpc.printable import printable

TRIES = 4  # of what fsspec does not try again itself; the waits double from the first
_FIRST_WAIT_SECONDS = 0.5
# A server that is silent for so long is asked again; after a minute and a half it is given up.
_SILENCE_SECONDS = 10.0
_S3_TRIES, _BOTO_TRIES = 3, 3  # by s3fs, of botocore's each; 503 is for botocore alone


def wait_seconds(attempt: int) -> float:
    """Return how long to wait after the `attempt`-th failure, from 0."""
    return _FIRST_WAIT_SECONDS * 2.0**attempt


def file_system(url: str) -> Any:
    """Return fsspec's file system for a URL: for S3 anonymous where no credentials are set up.

    Endpoint, region, profile and keys are read by botocore from AWS_* and ~/.aws; what stands in
    fsspec's own configuration (FSSPEC_S3) goes before.
    """
    protocol = url.partition("://")[0].lower()
    try:
        import aiohttp
        import fsspec
        import s3fs  # noqa: F401
    except ImportError as error:
        raise StorageError(
            f"{url}: reading it needs a package that is not installed ({error.name}); install "
            f"the extra: pip install 'photozhpc[s3]'"
        ) from error
    settings: dict[str, Any] = {}
    with telling(url):
        if protocol == "s3":
            settings["anon"] = not has_credentials()
            settings["config_kwargs"] = {
                "connect_timeout": _SILENCE_SECONDS,
                "read_timeout": _SILENCE_SECONDS,
                "retries": {"total_max_attempts": _BOTO_TRIES},
            }
        else:
            patience = aiohttp.ClientTimeout(
                total=None, sock_connect=_SILENCE_SECONDS, sock_read=_SILENCE_SECONDS
            )
            settings["client_kwargs"] = {"timeout": patience}
        for name in settings.keys() & fsspec.config.conf.get(protocol, {}).keys():
            del settings[name]  # the user's own goes before
        system = fsspec.filesystem(protocol, **settings)
        if protocol == "s3":
            system.retries = _S3_TRIES
        return system


@lru_cache(maxsize=1)
def has_credentials() -> bool:
    import botocore.session

    return botocore.session.get_session().get_credentials() is not None


def tried(url: str, request: Any) -> Any:
    """Make a request again while it fails for what may pass."""
    for attempt in range(TRIES):
        try:
            return request()
        except _faults() as error:
            if attempt == TRIES - 1 or not is_transient(url, error):
                raise
            time.sleep(wait_seconds(attempt))
    raise AssertionError


def is_transient(url: str, error: BaseException) -> bool:
    """Whether it is worth another try: what s3fs has tried again itself is not."""
    import aiohttp

    if isinstance(error, EOFError):
        return True
    if isinstance(error, aiohttp.ClientResponseError):
        return error.status >= 500 or error.status == 429
    passing = aiohttp.ClientPayloadError | aiohttp.ClientConnectionError | TimeoutError
    return url.startswith("http") and isinstance(error, passing)


def _faults() -> tuple[type[BaseException], ...]:
    """What a request may raise."""
    import aiohttp
    from botocore.exceptions import BotoCoreError, ClientError

    ours = (OSError, EOFError, ValueError, asyncio.TimeoutError)
    return (*ours, aiohttp.ClientError, BotoCoreError, ClientError)


@contextmanager
def telling(url: str) -> Iterator[None]:
    """Turn what a request raises into a FileNotFoundError, or a line that says what to do."""
    try:
        yield
    except FileNotFoundError as error:
        unreached = _unreached(error) if url.startswith("http") else None
        if unreached is not None:  # fsspec says the same of a server that is not there or refuses
            raise StorageError(_line(url, unreached)) from error
        raise missing(url) from error
    except _faults() as error:
        raise StorageError(_line(url, error)) from error


def _unreached(error: BaseException) -> BaseException | None:
    import aiohttp

    cause = error.__cause__ or error.__context__
    if isinstance(cause, aiohttp.ClientResponseError):
        # 403 is also what those say who do not tell what is there.
        return cause if cause.status in (401, 429) or cause.status >= 500 else None
    is_other = isinstance(cause, _faults()) and not isinstance(cause, FileNotFoundError)
    return cause if is_other else None


def missing(url: str) -> FileNotFoundError:
    return FileNotFoundError(errno.ENOENT, "no such object, folder or bucket", printable(url))


def _line(url: str, error: BaseException) -> str:
    import aiohttp
    import botocore.exceptions as boto

    detail = one_line(printable(str(error)) or type(error).__name__)
    status = getattr(error, "status", None)
    if isinstance(error, PermissionError | boto.NoCredentialsError) or status in (401, 403):
        who = "credentials that are set up" if has_credentials() else "anonymous requests"
        return (
            f"{url}: access denied to {who} ({detail}); check the address (what may not be listed "
            f"is denied even where there is nothing) and AWS_PROFILE, or for a public bucket "
            f"against your credentials set FSSPEC_S3='{{\"anon\": true}}'"
        )
    if isinstance(error, boto.ProfileNotFound | boto.PartialCredentialsError):
        return f"{url}: {detail}; check AWS_PROFILE and ~/.aws"
    if status is not None or (isinstance(error, OSError) and error.errno == errno.EBUSY):
        return f"{url}: the server does not serve it now ({detail}); run the same command later"
    if isinstance(
        error,
        boto.ConnectionError
        | boto.HTTPClientError
        | aiohttp.ClientConnectionError
        | ConnectionError
        | TimeoutError,
    ):
        setting = " and AWS_ENDPOINT_URL" if url.startswith("s3") else ""
        return (
            f"{url}: the server cannot be reached ({detail}); check the network{setting}, and run "
            f"the same command again"
        )
    if isinstance(error, EOFError | aiohttp.ClientPayloadError):
        return (
            f"{url}: truncated: the server broke off ({detail}), after several tries; run the same "
            f"command again"
        )
    return f"{url}: cannot be read ({type(error).__name__}: {detail})"
