"""The catalogue as one VOParquet file (IVOA Note 1.0)."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from photozhpc.catalog.photoz_catalog import TEXT_LENGTH_KEY
from photozhpc.exports.dialects import Dialect, translated_schema
from photozhpc.exports.rows import CatalogRows, OnProgress

ROW_GROUP_LEN = 1 << 17  # rows, whatever the size of the parts


def write_parquet(
    path: Path, rows: CatalogRows, dialect: Dialect | None, progress: OnProgress
) -> None:
    """Write the file."""
    settings = {"compression": "zstd", "use_dictionary": ["tile_id"], "write_page_checksum": True}
    target = translated_schema(rows.schema, dialect)
    length = str(rows.text_length).encode()
    target = target.with_metadata({**target.metadata, TEXT_LENGTH_KEY: length})
    with pq.ParquetWriter(path, target, **settings) as writer:
        waiting: list[pa.Table] = []
        for table in rows.translated(dialect, progress):
            waiting.append(table.cast(target))
            if sum(map(len, waiting)) >= ROW_GROUP_LEN:
                writer.write_table(pa.concat_tables(waiting), ROW_GROUP_LEN)
                waiting = []
        if waiting:
            writer.write_table(pa.concat_tables(waiting), ROW_GROUP_LEN)
