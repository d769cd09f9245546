"""Files that are not on a disk: objects at s3:// and https:// URLs, read through fsspec.

Nothing here writes. A file system of fsspec belongs to one process and thread, so an `ObjectPath`
holds none: it is only a URL, and can be sent to other processes.
"""

import errno
import fnmatch
import glob
import io
import os
import re
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, unquote, urlsplit

from photozhpc.errors import StorageError
from photozhpc.files.disk import files_below, is_full, temporary_folder
from photozhpc.files.requests import (
    TRIES,
    errors_translated,
    file_system,
    is_transient,
    not_found,
    wait_seconds,
    with_retries,
)
from photozhpc.printable import printable

if TYPE_CHECKING:
    from typing_extensions import TypeIs

PROTOCOLS = ("s3", "https", "http")
HEAD_BYTES = 1 << 18  # holds the header of most mosaics, and takes about as long as a request
_PIECE_BYTES = 8 << 20  # of an object that is read whole
_PIECES_AT_A_TIME = 4
_FILE_NAME = re.compile(r"[^/]+\.(asdf|fits?|parquet|csv|ecsv)(\.gz|\.fz)?", re.IGNORECASE)
_WITHOUT_RANGES: set[str] = set()  # servers that send whole files only
_URL = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]+)://")


@dataclass(frozen=True, order=True, repr=False)
class ObjectPath:
    """The address of an object or a folder, with the methods of `Path` that are needed.

    Its text omits passwords, tokens and signatures; `url` has them.

    Attributes:
        size, etag: of the object, from a listing; None: unknown.
    """

    url: str
    size: int | None = field(default=None, compare=False)
    etag: str | None = field(default=None, compare=False)

    def __str__(self) -> str:
        return printable(self.url)

    def __repr__(self) -> str:
        return f"ObjectPath({str(self)!r})"

    def __truediv__(self, name: str | Path) -> "ObjectPath":
        address, query = self._parts
        return ObjectPath(f"{address}/{name}{query}")

    @property
    def _parts(self) -> tuple[str, str]:
        """Address and query; only web servers have queries, a key of S3 may hold a '?'."""
        address, mark, query = self.url.partition("?" if self.url.startswith("http") else "\0")
        return address.rstrip("/"), mark + query

    @property
    def name(self) -> str:
        """The file's name; if the address has none, the one in the query: "get?file=a.fits"."""
        address, query = self._parts
        name = address.rpartition("/")[2]
        if address.startswith("http"):  # index pages have "a%20b.fits"
            name = Path(unquote(name)).name
        if query and not Path(name).suffix:
            names_in_query = [Path(value).name for _, value in parse_qsl(query[1:])]
            return next(filter(_FILE_NAME.fullmatch, names_in_query), name)
        return name

    @property
    def stem(self) -> str:
        return Path(self.name).stem

    @property
    def suffix(self) -> str:
        return Path(self.name).suffix

    @property
    def parent(self) -> "ObjectPath":
        address, query = self._parts
        folder = address.rpartition("/")[0]
        return self if folder.endswith("/") else ObjectPath(folder + query)

    def with_name(self, name: str) -> "ObjectPath":
        return self.parent / name

    def absolute(self) -> "ObjectPath":
        return self

    def relative_to(self, folder: "ObjectPath") -> Path:
        return Path(self._parts[0].removeprefix(f"{folder._parts[0]}/"))

    def exists(self) -> bool:
        return self.is_file() or self.is_dir()

    def is_file(self) -> bool:
        if self.etag is not None:
            return True  # it was listed
        try:
            self.described()
        except FileNotFoundError:
            return False
        return True

    def is_dir(self) -> bool:
        system = file_system(self.url)
        with errors_translated(self.url):
            return bool(system.isdir(self.url))

    def iterdir(self) -> Iterator["ObjectPath"]:
        system = file_system(self.url)
        with errors_translated(self.url):
            listing = system.ls(self.url, detail=True, refresh=True)
        yield from (_listed(system, about) for about in listing)

    def glob(self, pattern: str) -> Iterator["ObjectPath"]:
        """Yield what is in the folder itself, and not below it, with a name like `pattern`."""
        with suppress(FileNotFoundError):
            yield from [path for path in self.iterdir() if path.match(pattern)]

    def rglob(self, pattern: str) -> Iterator["ObjectPath"]:
        """Yield the objects below the folder with a name like `pattern`."""
        yield from (path for path in list_objects(self) if path.match(pattern))

    def match(self, pattern: str) -> bool:
        """Whether its name is like `pattern`."""
        return fnmatch.fnmatchcase(self.name, pattern)

    def described(self) -> "ObjectPath":
        """Return it with its present size and ETag, which the server is asked for.

        Raises:
            FileNotFoundError: there is no such object.
            StorageError: the server cannot be reached, or refuses.
        """
        system = file_system(self.url)
        system.invalidate_cache()
        with errors_translated(self.url):
            about = with_retries(self.url, lambda: system.info(self.url))
        if about.get("type") == "directory":
            raise not_found(self.url)
        return replace(self, size=about.get("size"), etag=_etag(about))

    def with_size(self) -> "ObjectPath":
        """Return it with its size, which the index pages of web servers do not state.

        Raises:
            FileNotFoundError, StorageError: as `described`; or the server does not state it.
        """
        path = self if self.size is not None else self.described()
        if path.size is None:
            raise StorageError(f"{self}: the server does not state its size; download it first")
        return path

    def read_range(self, start: int, stop: int) -> bytes:
        """Read bytes [start, stop) in one request.

        Raises:
            FileNotFoundError, StorageError: as `described`; or another number of bytes arrived.
        """
        return read_ranges([(self, start, stop)])[0]

    def read_bytes(self) -> bytes:
        """Read all of a small object in one request."""
        if self.size is not None:
            return self.read_range(0, self.size)
        system = file_system(self.url)
        with errors_translated(self.url):
            return bytes(with_retries(self.url, lambda: system.cat_file(self.url, start=0)))

    def open(self, mode: str = "rb", buffering: int = 0, head: bytes = b"") -> io.RawIOBase:
        """Open for random access: what is read is requested in blocks, which are kept.

        Args:
            buffering: as of `Path.open`, and ignored: the blocks are the buffer.
            head: the first bytes, if they have been read.
        """
        if mode != "rb":
            raise ValueError(f"objects are opened for reading ('rb'), not '{mode}'")
        return _Blocks(self.with_size(), head)

    @contextmanager
    def fetched(self) -> Iterator[Path]:
        """Give a whole copy of one version of the object, in TMPDIR.

        Raises:
            FileNotFoundError, StorageError: as `described`; the object was replaced while it was
                read or since it was listed; or there is no room for the copy.
        """
        before = self.with_size()
        size = before.size or 0
        with temporary_folder("photozhpc-fetched") as folder:
            copy = folder / self.name
            step = _PIECE_BYTES * _PIECES_AT_A_TIME
            try:
                with open(copy, "wb") as out:
                    for at in range(0, size, step):
                        if _server(self.url) in _WITHOUT_RANGES:
                            self._fetch_whole(copy, size)
                            break
                        out.writelines(self._pieces(at, min(at + step, size)))
            except OSError as error:
                if not is_full(error):
                    raise
                raise StorageError(
                    f"{self}: no room for {size / 1e9:.2f} GB in {folder} ({error.strerror}); set "
                    "TMPDIR to a larger disk"
                ) from error
            after = self.described()
            if (after.size, after.etag) != (size, before.etag):
                raise StorageError(
                    f"{self}: was replaced while it was read ({size} bytes, ETag {before.etag}; "
                    f"now {after.size} bytes, ETag {after.etag}); run the same command again"
                )
            yield copy

    def _fetch_whole(self, copy: Path, size: int) -> None:
        system = file_system(self.url)
        with errors_translated(self.url):
            with_retries(self.url, lambda: system.get_file(self.url, str(copy)))
            if copy.stat().st_size != size:
                raise EOFError(f"{copy.stat().st_size} bytes arrived instead of {size}")

    def _pieces(self, start: int, stop: int) -> list[bytes]:
        edges = range(start, stop, _PIECE_BYTES)
        return read_ranges([(self, at, min(at + _PIECE_BYTES, stop)) for at in edges])


AnyPath = Path | ObjectPath
PathLike = str | os.PathLike[str] | ObjectPath


def is_remote(path: AnyPath) -> "TypeIs[ObjectPath]":
    """Whether a path is an object's, and not a file's on a disk."""
    return isinstance(path, ObjectPath)


def location(where: PathLike) -> AnyPath:
    """Return the object that a URL names, or the path.

    Raises:
        StorageError: the URL has another protocol than those of PROTOCOLS, or no server.
    """
    if isinstance(where, ObjectPath):
        return where
    match = _URL.match(where) if isinstance(where, str) else None
    if match is None:
        return Path(where)
    if match[1].lower() not in PROTOCOLS:
        raise StorageError(
            f"{where}: photozhpc does not read '{match[1]}' URLs; use {', '.join(PROTOCOLS)}"
        )
    url = f"{match[1].lower()}://{str(where)[match.end() :].rstrip('/')}"
    if not re.match(r"[^:]+://[^/]", url):
        raise StorageError(f"{where}: no bucket or server in the URL; use {match[1]}://NAME/FOLDER")
    return ObjectPath(url)


def is_glob(where: AnyPath) -> bool:
    """Whether a location has wildcards; a question mark in the URL of a web server is not one."""
    if not isinstance(where, ObjectPath):
        return any(letter in str(where) for letter in "*?[")
    address, _ = where._parts
    return any(letter in address for letter in ("*[" if address.startswith("http") else "*?["))


def list_files(where: AnyPath, notes: list[str] | None = None) -> list[AnyPath]:
    """Return the files in a folder and its subfolders, or those that match a glob, sorted.

    The URL of an object gives the object. A glob on a disk may match folders too.

    Args:
        notes: receives a line on folders that cannot be listed.

    Raises:
        ValueError: it is neither a folder nor a glob.
        StorageError: the server cannot be reached, or refuses.
    """
    if isinstance(where, ObjectPath):
        return [*list_objects(where)]
    if where.is_dir():
        return [*files_below(where, notes)]
    base = Path(where.anchor) if where.is_absolute() else Path()
    return [*sorted(base.glob(str(where.relative_to(base))))]


def expand_glob(where: AnyPath) -> list[AnyPath]:
    """Return the files on a disk that match a glob, sorted; any other path is returned itself."""
    if isinstance(where, ObjectPath) or where.is_file():
        return [where]
    return [Path(file) for file in sorted(glob.glob(str(where)))] or [where]


def version_of(path: AnyPath) -> tuple[int | None, int | str | None]:
    """Return what changes with the content: size, and mtime (ns) of a file or ETag of an object.

    For an object it is what a listing said; no request is made.

    Raises:
        OSError: there is no such file.
    """
    if isinstance(path, ObjectPath):
        return path.size, path.etag
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns


def size_of(path: AnyPath) -> int:
    """Return the present size in bytes; 0 for an object whose size the server does not state.

    Raises:
        OSError: there is no such file or object.
        StorageError: the server cannot be reached, or refuses.
    """
    if isinstance(path, ObjectPath):
        return path.described().size or 0
    return path.stat().st_size


def list_objects(where: ObjectPath) -> list[ObjectPath]:
    """Return the objects in a folder and its subfolders, those that match a glob, or the object.

    Raises:
        StorageError: the server cannot be reached, or refuses.
    """
    system = file_system(where.url)
    system.invalidate_cache()
    try:
        with errors_translated(where.url):
            if is_glob(where):
                entries = with_retries(where.url, lambda: system.glob(where.url, detail=True))
            elif _is_web_file(system, where.url):
                return [where.described()]
            else:
                entries = with_retries(where.url, lambda: system.find(where.url, detail=True))
    except FileNotFoundError:
        return []
    listed = (_listed(system, about) for about in entries.values() if about["type"] == "file")
    return sorted(path for path in listed if path.name)


def read_ranges(ranges: Sequence[tuple[ObjectPath, int, int | None]]) -> list[bytes]:
    """Read bytes [start, stop) of objects of one server, concurrently, in one request each.

    Without `stop` it is all from `start` on. Some servers, as Python's own, send whole files
    whatever they are asked for: from them each object is fetched once.

    Raises:
        FileNotFoundError: one of the objects does not exist.
        StorageError: the server cannot be reached or refuses, or sends fewer bytes, or more.
    """
    read: dict[int, bytes] = {}
    pending = [n for n, (_, start, stop) in enumerate(ranges) if stop is None or stop > start]
    if not pending:
        return [b""] * len(ranges)
    url = ranges[0][0].url
    if _server(url) in _WITHOUT_RANGES:
        whole = {path: replace(path, size=None).read_bytes() for path, _, _ in ranges}
        return [whole[path][start:stop] for path, start, stop in ranges]
    system = file_system(url)
    for attempt in range(TRIES):
        if attempt:
            time.sleep(wait_seconds(attempt - 1))
        with errors_translated(url):
            answers = system.cat_ranges(
                [ranges[n][0].url for n in pending],
                [ranges[n][1] for n in pending],
                [ranges[n][2] for n in pending],
                on_error="return",
            )
        failures: dict[int, BaseException] = {}
        for n, answer in zip(pending, answers, strict=True):
            path, start, stop = ranges[n]
            if isinstance(answer, BaseException):
                failures[n] = answer
            elif stop is None or len(answer) == stop - start:
                read[n] = answer
            elif len(answer) > stop - start and len(answer) == path.with_size().size:
                _WITHOUT_RANGES.add(_server(url))
                read[n] = answer[start:stop]
            else:
                failures[n] = EOFError(f"{len(answer)} bytes arrived instead of {stop - start}")
        if not failures:
            return [read.get(n, b"") for n in range(len(ranges))]
        pending = list(failures)
        if not all(is_transient(url, error) for error in failures.values()):
            break
    n = min(failures, key=lambda n: is_transient(url, failures[n]))
    with errors_translated(ranges[n][0].url):
        raise failures[n]
    raise AssertionError


def read_heads(paths: Iterable[AnyPath]) -> dict[AnyPath, bytes]:
    """Read the first HEAD_BYTES of the objects among some paths, concurrently.

    Raises:
        FileNotFoundError, StorageError: as `read_ranges`.
    """
    objects = [path.with_size() for path in paths if isinstance(path, ObjectPath)]
    heads = read_ranges([(path, 0, min(path.size or 0, HEAD_BYTES)) for path in objects])
    return dict(zip(objects, heads, strict=True))


class _Blocks(io.RawIOBase):
    """An object that is read in blocks of HEAD_BYTES, one request each; the blocks are kept."""

    def __init__(self, path: ObjectPath, head: bytes) -> None:
        self._path = path
        self._size = path.size or 0
        self._at = 0
        self._blocks = {0: head} if head else {}

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        origin = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        if origin + offset < 0:
            raise OSError(errno.EINVAL, "seek before the beginning")
        self._at = origin + offset
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        done = 0  # fills the buffer, as files do: readers rely on it
        while done < len(buffer) and self._at < self._size:
            number, within = divmod(self._at, HEAD_BYTES)
            start = number * HEAD_BYTES
            if number not in self._blocks:
                stop = min(start + HEAD_BYTES, self._size)
                self._blocks[number] = self._path.read_range(start, stop)
            part = self._blocks[number][within : within + len(buffer) - done]
            buffer[done : done + len(part)] = part
            self._at += len(part)
            done += len(part)
        return done


def _listed(system: Any, about: dict[str, Any]) -> ObjectPath:
    url = system.unstrip_protocol(about["name"])
    return ObjectPath(url.rstrip("/"), about.get("size"), _etag(about))


def _etag(about: dict[str, Any]) -> str | None:
    """What changes with the content: the ETag; without one, the date of the last change."""
    version = about.get("ETag") or about.get("Last-Modified")
    return None if version is None else str(version).strip('"')


def _server(url: str) -> str:
    return urlsplit(url).netloc


def _is_web_file(system: Any, url: str) -> bool:
    """Whether a web server's URL is a file's, and not an index page's."""
    if not url.startswith("http"):
        return False
    about = system.info(url)
    return about.get("mimetype") != "text/html" and about.get("size") is not None
