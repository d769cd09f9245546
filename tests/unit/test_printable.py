"""What lets someone in stands in a URL that is read, and in nothing that is shown or written."""

import logging

import pytest

from photozhpc.errors import StorageError
from photozhpc.files.objects import ObjectPath
from photozhpc.logs import LOG
from photozhpc.printable import printable

PASSWORD, SIGNATURE = "pw0rd-9f3c", "c2lnbmF0dXJl71"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://me:pw@host:8443/a/t.fits", "https://host:8443/a/t.fits"),
        ("https://me:p%40w@host/t.fits", "https://host/t.fits"),
        ("https://me:p/w@host/t.fits", "https://host/t.fits"),  # not quoted as it should be
        ('https://me:p"<w>@host/t.fits', "https://host/t.fits"),
        ("gs://me:pw@bucket/t.fits", "gs://bucket/t.fits"),
        ("tls://me:pw@node1:8786", "tls://node1:8786"),
        ("https:/me:pw@host/t.fits", "https:/host/t.fits"),  # as a Path shows it
        ("https://a:pw@h/x,https://b:pw@h/y", "https://h/x,https://h/y"),
        ("https://h/x;jsessionid=f00d", "https://h/x;jsessionid=..."),
        ("HTTPS://ghp_token@host/t.fits", "HTTPS://host/t.fits"),
        ("https://host:8443/me@home/t.fits", "https://host:8443/me@home/t.fits"),
        (
            "https://b.s3.amazonaws.com/k.fits?X-Amz-Algorithm=AWS4-HMAC-SHA256&"
            "X-Amz-Credential=AKIA%2F2026&X-Amz-Expires=300&X-Amz-Signature=f00d",
            "https://b.s3.amazonaws.com/k.fits?X-Amz-Algorithm=...&X-Amz-Credential=...&"
            "X-Amz-Expires=...&X-Amz-Signature=...",
        ),
        (
            "https://a.blob.core.windows.net/c/t.fits?sv=2024-11-04&se=2026-01-01&sig=ab%2B",
            "https://a.blob.core.windows.net/c/t.fits?sv=...&se=...&sig=...",
        ),
        ("https://h/t.fits?token=123456", "https://h/t.fits?token=..."),
        ("https://h/t.fits?secret", "https://h/t.fits?..."),
        ("https://h/t.fits#access_token=x", "https://h/t.fits#..."),
        (
            "https://h/get?id=31&file=a.fits.gz&k=hunter2",
            "https://h/get?id=31&file=a.fits.gz&k=...",
        ),
        (
            "https://mast.stsci.edu/api/v0.1/Download/file?uri=mast:HST/product/x_drz.fits",
            "https://mast.stsci.edu/api/v0.1/Download/file?uri=mast:HST/product/x_drz.fits",
        ),
        ("s3://bucket/a folder/t.fits", "s3://bucket/a folder/t.fits"),
        ("/a/path/t.fits?x=1", "/a/path/t.fits?x=1"),
    ],
)
def test_a_url_is_shown_without_its_secrets(url: str, shown: str) -> None:
    assert printable(url) == shown
    assert printable(f"cannot read {url} now") == f"cannot read {shown} now"
    assert printable(shown) == shown


@pytest.mark.parametrize(
    ("url", "name", "folder"),
    [
        ("https://h/a/t.fits?sig=x/y", "t.fits", "https://h/a?sig=x/y"),
        ("https://h/get?id=3&file=b.fits", "b.fits", "https://h?id=3&file=b.fits"),
        ("https://h/file?uri=mast:HST/x_drz.fits.gz", "x_drz.fits.gz", None),
        ("https://h/a%20b.fits", "a b.fits", "https://h"),
        ("https://h/..%2F..%2Fb.fits", "b.fits", "https://h"),
        ("s3://b/what?.fits", "what?.fits", "s3://b"),
    ],
)
def test_a_query_is_no_part_of_a_name(url: str, name: str, folder: str | None) -> None:
    path = ObjectPath(url)
    assert path.name == name
    if folder is not None:
        assert path.parent.url == folder
    assert str(path) == repr(path)[len("ObjectPath('") : -2] == printable(url)


def test_errors_and_logs_are_without_secrets(capsys: pytest.CaptureFixture[str]) -> None:
    url = f"https://me:{PASSWORD}@host/t.fits?sig={SIGNATURE}"
    assert str(StorageError(f"{url}: no")) == "https://host/t.fits?sig=...: no"
    record = logging.LogRecord("photozhpc", logging.INFO, "", 0, "%s", (url,), None)
    assert LOG.handlers[0].format(record) == "https://host/t.fits?sig=..."
