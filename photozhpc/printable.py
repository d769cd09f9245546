"""Removes passwords, tokens and signatures from URLs before they are shown or stored."""

import re
from urllib.parse import unquote

# Any scheme; a URL that went through a Path has one slash. A password may hold quotes and brackets.
# Punctuation that follows the URL in a sentence is no part of it.
_URL = re.compile(
    r"([a-z][a-z0-9+.-]{0,30}://|(?:https?|s3|gs|ftp):/)"
    r"((?:[^\s/@:,]*:[^\s/@]*@)?[^\s\"<>]*(?:[^\s\"<>:;,.)'\]]|\.{3}))",
    re.IGNORECASE,
)
# user:password@, also where the password holds a '/' that should be %2F.
_USER = re.compile(r"^(?:[^/?#]*@|[^/?#:@]+:(?!\d*(?:[/?#]|$))[^@]*@)")
# A query's value is shown if it is a number or a file name, and its key does not name a secret.
_HARMLESS = re.compile(
    r"\d{1,12}|[\w.+:/ -]+\.(?:asdf|fits?|fz|gz|parquet|csv|ecsv|txt|cat|json|zarr)", re.IGNORECASE
)
_SECRET_NAME = re.compile(r"sig|tok|key|pass|pw|pin|auth|cred|secret|sess|code|x-", re.IGNORECASE)


def printable(text: str) -> str:
    """Return a text without the credentials in its URLs.

    User and password are left out, and every query value except numbers and file names: signatures
    and tokens have many names. "https://u:pw@host/t.fits?id=3&sig=abc" becomes
    "https://host/t.fits?id=3&sig=...".
    """
    if ":/" not in text:
        return text
    return _URL.sub(lambda url: url[1] + _without_secrets(url[2]), text)


def _without_secrets(address: str) -> str:
    address = _USER.sub("", address, count=1)
    address, hash_, _ = address.partition("#")
    path, mark, query = address.partition("?")
    path = re.sub(r";([^=;/]*)=[^;/]*", r";\1=...", printable(path))
    return path + mark + "&".join(map(_shown, query.split("&"))) + (hash_ and "#...")


def _shown(parameter: str) -> str:
    name, equals, value = parameter.partition("=")
    if not equals:
        return name and "..."
    is_harmless = _HARMLESS.fullmatch(unquote(value)) and not _SECRET_NAME.search(name)
    return f"{name}={value if is_harmless else '...'}"
