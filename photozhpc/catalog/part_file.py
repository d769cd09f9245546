"""One Parquet file of a run: writes it atomically, and reads it with its checksums.

Parts of the catalogue (photoz_catalog.py) and their p(z) (pdf.py) are such files. The metadata
name the run and the part (PART_KEY), and say how the file was made (PROVENANCE_KEY).
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from photozhpc.catalog.notes import PART_KEY, FileNote
from photozhpc.errors import CatalogError, one_line
from photozhpc.files.disk import read_fault, write_durably

PROVENANCE_KEY = b"photozhpc.provenance"


def write_part_file(
    table: pa.Table,
    path: Path,
    identity: Mapping[str, Any],
    provenance: str,
    metadata: Mapping[bytes, bytes],
    **settings: Any,
) -> FileNote:
    """Write a file so that it is there whole or not at all, even if the machine loses power.

    Args:
        identity: the run and the shards that it is of; `check_identity` compares them.
        provenance: JSON: versions, hashes, command.
        metadata: added to those of the table's schema.
        settings: passed to `pyarrow.parquet.write_table`.

    Raises:
        RunError: the disk is full, or cannot be written.
    """
    metadata = {
        **(table.schema.metadata or {}),
        **metadata,
        PART_KEY: _identity_text(identity),
        PROVENANCE_KEY: provenance.encode(),
    }
    buffer = pa.BufferOutputStream()
    pq.write_table(
        table.replace_schema_metadata(metadata),
        buffer,
        compression="zstd",
        write_page_checksum=True,
        **settings,
    )
    content = memoryview(buffer.getvalue())
    write_durably(path, content, sync_rename=False)
    return FileNote.of(content)


def check_identity(
    path: Path, metadata: Mapping[bytes, bytes] | None, identity: Mapping[str, Any]
) -> None:
    """Check by its metadata that a file is of this run and of these shards.

    Raises:
        CatalogError: it is of others.
    """
    if (metadata or {}).get(PART_KEY) != _identity_text(identity):
        raise CatalogError(f"{path}: is a part of another run or of other shards")


@contextmanager
def damage_reported(path: Path, content: str = "the part") -> Iterator[None]:
    """Raise CatalogError, with what to do next, if reading a file of a run fails."""
    try:
        yield
    except (OSError, ValueError, pa.ArrowException) as error:
        raise CatalogError(
            read_fault(path, error)
            or f"{path}: {content} is missing or damaged ({one_line(error)}); run the same "
            f"'photozhpc infer' again to replace it"
        ) from error


def read_footer(path: Path) -> tuple[pa.Schema, int]:
    """Return the schema of a file, with its metadata, and its number of rows.

    Raises:
        CatalogError: it is missing or damaged.
    """
    with damage_reported(path), pq.ParquetFile(path) as file:
        return file.schema_arrow, file.metadata.num_rows


def _identity_text(identity: Mapping[str, Any]) -> bytes:
    return json.dumps(identity, sort_keys=True).encode()
