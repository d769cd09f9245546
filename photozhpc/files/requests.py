"""Requests to S3 and web servers through fsspec: retries, and errors as one line."""

import asyncio
import errno
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

from photozhpc.errors import StorageError, one_line
from photozhpc.printable import printable

TRIES = 4  # of what fsspec does not retry itself; each wait is twice the previous one
_FIRST_WAIT_SECONDS = 0.5
# A server that is silent for this long is asked again, for a minute and a half in all.
_SILENCE_SECONDS = 10.0
_S3_TRIES, _BOTO_TRIES = 3, 3  # s3fs tries, each of so many by botocore; only botocore retries 503


def wait_seconds(attempt: int) -> float:
    """Return how long to wait after the `attempt`-th failure, counted from 0."""
    return _FIRST_WAIT_SECONDS * 2.0**attempt


def file_system(url: str) -> Any:
    """Return fsspec's file system for a URL; S3 is anonymous where no credentials are set up.

    botocore reads endpoint, region, profile and keys from AWS_* and ~/.aws; fsspec's own
    configuration (FSSPEC_S3) takes precedence.

    Raises:
        StorageError: a package that it needs is not installed, or AWS's settings are faulty.
    """
    protocol = url.partition("://")[0].lower()
    try:
        import aiohttp
        import fsspec
        import s3fs  # noqa: F401
    except ImportError as error:
        raise StorageError(
            f"{url}: reading it needs the package {error.name}, which is not installed; run "
            "pip install 'photozhpc[s3]'"
        ) from error
    settings: dict[str, Any] = {}
    with errors_translated(url):
        if protocol == "s3":
            settings["anon"] = not has_credentials()
            settings["config_kwargs"] = {
                "connect_timeout": _SILENCE_SECONDS,
                "read_timeout": _SILENCE_SECONDS,
                "retries": {"total_max_attempts": _BOTO_TRIES},
            }
        else:
            timeout = aiohttp.ClientTimeout(
                total=None, sock_connect=_SILENCE_SECONDS, sock_read=_SILENCE_SECONDS
            )
            settings["client_kwargs"] = {"timeout": timeout}
        for name in settings.keys() & fsspec.config.conf.get(protocol, {}).keys():
            del settings[name]
        system = fsspec.filesystem(protocol, **settings)
        if protocol == "s3":
            system.retries = _S3_TRIES
        return system


@lru_cache(maxsize=1)
def has_credentials() -> bool:
    """Whether botocore finds credentials for S3."""
    import botocore.session

    return botocore.session.get_session().get_credentials() is not None


def with_retries(url: str, request: Any) -> Any:
    """Make a request, and repeat it while its errors are transient."""
    for attempt in range(TRIES):
        try:
            return request()
        except _request_errors() as error:
            if attempt == TRIES - 1 or not is_transient(url, error):
                raise
            time.sleep(wait_seconds(attempt))
    raise AssertionError


def is_transient(url: str, error: BaseException) -> bool:
    """Whether an error is worth another try; one that s3fs has retried itself is not."""
    import aiohttp

    if isinstance(error, EOFError):
        return True
    if isinstance(error, aiohttp.ClientResponseError):
        return error.status >= 500 or error.status == 429
    transient = aiohttp.ClientPayloadError | aiohttp.ClientConnectionError | TimeoutError
    return url.startswith("http") and isinstance(error, transient)


def _request_errors() -> tuple[type[BaseException], ...]:
    import aiohttp
    from botocore.exceptions import BotoCoreError, ClientError

    builtin = (OSError, EOFError, ValueError, asyncio.TimeoutError)
    return (*builtin, aiohttp.ClientError, BotoCoreError, ClientError)


@contextmanager
def errors_translated(url: str) -> Iterator[None]:
    """Turn the errors of a request into FileNotFoundError, or a StorageError with advice."""
    try:
        yield
    except FileNotFoundError as error:
        server_error = _server_error(error) if url.startswith("http") else None
        if server_error is None:
            raise not_found(url) from error
        raise StorageError(_message(url, server_error)) from error
    except _request_errors() as error:
        raise StorageError(_message(url, error)) from error


def _server_error(error: BaseException) -> BaseException | None:
    """Return why a server did not answer, which fsspec reports as a missing file; None: it did."""
    import aiohttp

    cause = error.__cause__ or error.__context__
    if isinstance(cause, aiohttp.ClientResponseError):
        # Some servers answer 403 for a missing file, so as not to reveal which files there are.
        return cause if cause.status in (401, 429) or cause.status >= 500 else None
    is_other = isinstance(cause, _request_errors()) and not isinstance(cause, FileNotFoundError)
    return cause if is_other else None


def not_found(url: str) -> FileNotFoundError:
    """Return the error about an object that does not exist."""
    return FileNotFoundError(errno.ENOENT, "no such object, folder or bucket", printable(url))


def _message(url: str, error: BaseException) -> str:
    import aiohttp
    import botocore.exceptions as boto

    detail = one_line(printable(str(error)) or type(error).__name__)
    status = getattr(error, "status", None)
    if isinstance(error, PermissionError | boto.NoCredentialsError) or status in (401, 403):
        who = "your credentials" if has_credentials() else "anonymous requests"
        return (
            f"{url}: access denied to {who} ({detail}); check the address (a folder that may not "
            "be listed is denied even if it does not exist) and AWS_PROFILE; for a public bucket "
            "that refuses your credentials set FSSPEC_S3='{\"anon\": true}'"
        )
    if isinstance(error, boto.ProfileNotFound | boto.PartialCredentialsError):
        return f"{url}: {detail}; check AWS_PROFILE and ~/.aws"
    if status is not None or (isinstance(error, OSError) and error.errno == errno.EBUSY):
        return f"{url}: the server cannot serve it now ({detail}); run the same command later"
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
            "the same command again"
        )
    if isinstance(error, EOFError | aiohttp.ClientPayloadError):
        return (
            f"{url}: truncated: the server broke off several times ({detail}); run the same "
            "command again"
        )
    return f"{url}: cannot be read ({type(error).__name__}: {detail})"
