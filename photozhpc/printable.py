"""URLs as they may be shown and written down: without passwords, tokens and signatures."""

import re
from urllib.parse import unquote

# Of any scheme; a path of Python's has one slash. A password may hold quotes and brackets. Without
# the punctuation that follows it in a sentence.
_URL = re.compile(
    r"([a-z][a-z0-9+.-]{0,30}://|(?:https?|s3|gs|ftp):/)"
    r"((?:[^\s/@:,]*:[^\s/@]*@)?[^\s\"<>]*(?:[^\s\"<>:;,.)'\]]|\.{3}))",
    re.IGNORECASE,
)
# user:password@, also where the password holds a '/' that ought to be %2F.
_USER = re.compile(r"^(?:[^/?#]*@|[^/?#:@]+:(?!\d*(?:[/?#]|$))[^@]*@)")
# What a query may say is shown if it is a number or the name of a file, and not called a secret.
_HARMLESS = re.compile(
    r"\d{1,12}|[\w.+:/ -]+\.(?:asdf|fits?|fz|gz|parquet|csv|ecsv|txt|cat|json|zarr)", re.IGNORECASE
)
_SECRET_NAME = re.compile(r"sig|tok|key|pass|pw|pin|auth|cred|secret|sess|code|x-", re.IGNORECASE)


def printable(text: str) -> str:
    """Return a text in which URLs are without what lets someone in.

    Left out are user and password, and of a query's values all but numbers and names of files:
    signed URLs and tokens have many names. "https://u:pw@host/t.fits?id=3&sig=abc" becomes
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
