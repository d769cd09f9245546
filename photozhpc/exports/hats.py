"""The catalogue as a HATS collection: HEALPix partitions, a margin cache, an index of source_id.

hats-import makes the partitions and the margin (https://hats-import.readthedocs.io). Its index
needs another version of dask on Python 3.11 (`IndexArguments.check_versions`), so DuckDB sorts the
index: the same files, in bounded memory.
"""

import glob
import io
import os
import shutil
import sys
import warnings
from collections.abc import Iterator
from contextlib import redirect_stdout
from importlib.metadata import version
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from distributed import WorkerPlugin
from hats.catalog import TableProperties
from hats.catalog.dataset.collection_properties import CollectionProperties
from hats.io.parquet_metadata import write_parquet_metadata
from hats.pixel_math.spatial_index import (
    SPATIAL_INDEX_COLUMN,
    SPATIAL_INDEX_ORDER,
    compute_spatial_index,
)
from hats_import.catalog.arguments import ImportArguments
from hats_import.catalog.file_readers import InputReader
from hats_import.margin_cache.margin_cache_arguments import MarginCacheArguments
from hats_import.pipeline import pipeline_with_client
from upath import UPath

from photozhpc.catalog.footprint import FOOTPRINT_NAME, write_footprint
from photozhpc.catalog.notes import RunNotes
from photozhpc.catalog.part_file import read_footer
from photozhpc.catalog.pdf import pdf_path
from photozhpc.catalog.photoz_catalog import read_pieces
from photozhpc.catalog.votable import table_description, with_votable
from photozhpc.errors import CatalogError, RunError, one_line
from photozhpc.exports.dialects import find_dialect, translate, translated, translated_schema
from photozhpc.exports.nested_pdf import NestedPdf
from photozhpc.exports.rows import CatalogRows, Exported
from photozhpc.files.disk import disk_error, partial_path, sync_folder, sync_tree
from photozhpc.workers.local import local_client

CATALOG_NAME = "photoz"
ABOUT = "Photometric redshifts, by photozhpc"
MARGIN_ARCSEC = 10.0
PARTITION_LEN = 500_000  # rows, at most: some 120 MB in memory
PARTITION_BYTES = 240 << 20  # of nested p(z), at most
CHUNK_BYTES = 60 << 20
LIST_LEN = 500_000  # rows of the parts of one task
INDEX_MEMORY = "1GB"
INDEX_LEN = 250_000  # rows at a time
INDEX_PAGE_BYTES = 16 << 10  # as in hats-import: looking up one id reads few values
_PARTITION = r"Norder=([0-9]+)/Dir=[0-9]+/Npix=([0-9]+)\.parquet$"  # the end of a path


def export_hats(rows: CatalogRows, columns: str, out: Path, workers: int | None) -> Exported:
    """Write a HATS collection; with the p(z), if the catalogue has it, as a nested column.

    Args:
        columns: name of the dialect.

    Raises:
        CatalogError: a part is damaged or already of HATS, a file of p(z) is missing, or no source
            has a position.
        RunError: `out` cannot be written.
    """
    if SPATIAL_INDEX_COLUMN in rows.schema.names:
        raise CatalogError(f"{rows.parts[0]}: is already a partition of a HATS catalogue")
    for part in rows.parts if NestedPdf.has(rows.parts[0], rows.run_notes) else ():
        if not pdf_path(part).exists():
            raise CatalogError(
                f"{pdf_path(part)}: is missing; run the same 'photozhpc infer' again to make it"
            )
    out = out.resolve()  # replace the target of a link, not the link
    # This compares the parts with their notes, too.
    n_placed = sum(len(_placed(piece)) for piece in rows.pieces(["ra", "dec"], verify=True))
    if not n_placed:
        raise CatalogError(
            f"{rows.parts[0].parent}: no source has a position, so none can be exported to HATS"
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = partial_path(out)
    shutil.rmtree(partial, ignore_errors=True)
    printed = io.StringIO()
    try:
        # hats-import prints the errors of its tasks, and hats warns of what is not an error.
        with redirect_stdout(printed), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Computing partitions", UserWarning)
            n_rows = _write_collection(rows, columns, partial, out.name, workers, printed)
        sync_tree(partial)
        if out.exists():
            old = partial_path(out.with_name(f"{out.name}.old"))
            out.rename(old)
            partial.rename(out)
            shutil.rmtree(old)
        else:
            partial.rename(out)
        sync_folder(out.parent)
    except (RuntimeError, ValueError, duckdb.Error) as error:
        for _ in rows.pieces():
            pass  # raises an error that names the damaged part, if there is one
        printed_text = printed.getvalue() if isinstance(error, RuntimeError) else ""
        reason = one_line(printed_text or error, 300)
        raise RunError(f"{out}: HATS could not be written ({reason})") from error
    except OSError as error:
        raise disk_error(out, error) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return Exported(n_rows, rows.n_rows - n_placed, "have no position")


class NoStdout(WorkerPlugin):
    """Keeps workers off stdout, which is for data; the client gets what they print anyway."""

    def setup(self, worker: object) -> None:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115


class PartsReader(InputReader):
    """Reads lists of parts, in chunks, with the HEALPix index that HATS sorts by."""

    def __init__(self, columns: str) -> None:
        self.columns = columns

    def read(self, input_file: object, read_columns: list[str] | None = None) -> Iterator[pa.Table]:
        """Yield tables of about CHUNK_BYTES; sources without a position are left out."""
        waiting: list[pa.Table] = []
        parts = [Path(line) for line in Path(str(input_file)).read_text().splitlines()]
        run_notes = RunNotes.beside(parts[0])
        dialect = find_dialect(self.columns)
        nested = None
        if read_columns is None and NestedPdf.has(parts[0], run_notes):
            nested = NestedPdf(parts[0], run_notes, dialect)
        for part in parts:
            pdf, start = nested and nested.read(part), 0
            for piece in read_pieces(part, None, run_notes):  # export_hats has verified SHA-256
                if nested and pdf:
                    rows = np.arange(start, start := start + len(piece))
                    column = nested.column(pdf.take(rows), piece["source_id"])
                    piece = piece.append_column(nested.field, column)
                table = _placed(piece)
                ra_N, dec_N = (table.column(name).to_numpy() for name in ("ra", "dec"))
                index_N = compute_spatial_index(np.mod(ra_N, 360), dec_N)
                table = translate(table, dialect).replace_schema_metadata()
                table = table.add_column(0, SPATIAL_INDEX_COLUMN, pa.array(index_N, pa.int64()))
                waiting.append(table.select(read_columns) if read_columns else table)
                if sum(table.nbytes for table in waiting) >= CHUNK_BYTES:
                    yield pa.concat_tables(waiting)
                    waiting = []
        if waiting:
            yield pa.concat_tables(waiting)


def _write_collection(
    rows: CatalogRows,
    columns: str,
    folder: Path,
    name: str,
    workers: int | None,
    printed: io.StringIO,
) -> int:
    scratch = folder / "scratch"
    scratch.mkdir(parents=True)
    dialect = find_dialect(columns)
    schema, partition_len = rows.schema, PARTITION_LEN
    if NestedPdf.has(rows.parts[0], rows.run_notes):
        nested = NestedPdf(rows.parts[0], rows.run_notes, dialect)
        schema = schema.append(nested.field)
        partition_len = min(partition_len, PARTITION_BYTES // nested.row_bytes)
    schema = _with_index(translated_schema(schema, dialect))
    pq.write_metadata(schema, scratch / "schema.parquet")
    ra, dec, source_id = (
        translated(column, dialect) if dialect else column for column in ("ra", "dec", "source_id")
    )
    lists = _part_lists(rows.parts, scratch)
    shared: dict[str, Any] = {
        "output_path": folder,
        "tmp_dir": scratch,
        "progress_bar": sys.stderr.isatty(),
        "simple_progress_bar": True,
        "tqdm_kwargs": {"leave": False},
    }
    main = ImportArguments(
        **shared,
        output_artifact_name=CATALOG_NAME,
        ra_column=ra,
        dec_column=dec,
        use_healpix_29=True,
        input_file_list=lists,
        file_reader=PartsReader(columns),
        use_schema_file=scratch / "schema.parquet",
        pixel_threshold=partition_len,
        addl_hats_properties={
            "obs_description": ABOUT,
            "hats_col_healpix": SPATIAL_INDEX_COLUMN,
            "hats_col_healpix_order": SPATIAL_INDEX_ORDER,
        },
    )
    margin_name = f"{CATALOG_NAME}_{MARGIN_ARCSEC:.0f}arcs"
    index_name = f"{CATALOG_NAME}_{source_id}"
    workers = workers or min(len(lists), len(os.sched_getaffinity(0)))
    preload = ["hats_import.pipeline", __name__]
    with local_client(workers, "cpu", preload=preload) as client, client.as_current():
        client.register_plugin(NoStdout())
        client.subscribe_topic("print", lambda event: print(*event[1]["args"], file=printed))
        pipeline_with_client(main, client)
        margin = MarginCacheArguments(
            **shared,
            output_artifact_name=margin_name,
            margin_threshold=MARGIN_ARCSEC,
            input_catalog_path=folder / CATALOG_NAME,
        )
        pipeline_with_client(margin, client)
    # The margin names the primary catalogue by its path, which is about to change.
    properties = TableProperties.read_from_dir(folder / margin_name)
    properties = properties.copy_and_update(primary_catalog=CATALOG_NAME)
    properties.to_properties_file(folder / margin_name)
    _write_index(folder / CATALOG_NAME, folder / index_name, source_id, scratch)
    shutil.rmtree(scratch)
    write_footprint(rows.parts, folder / FOOTPRINT_NAME)
    about: dict[str, Any] = {
        "name": name,
        "hats_primary_table_url": CATALOG_NAME,
        "all_margins": [margin_name],
        "default_margin": margin_name,
        "all_indexes": {source_id: index_name},
    }
    about |= TableProperties.new_provenance_dict(folder, builder=_builder())
    CollectionProperties(**about).to_properties_file(folder)
    return TableProperties.read_from_dir(folder / CATALOG_NAME).total_rows or 0


def _with_index(schema: pa.Schema) -> pa.Schema:
    about = {"ucd": "pos.healpix", "description": "healpix pixel of order 29, nested, ICRS"}
    index = pa.field(SPATIAL_INDEX_COLUMN, pa.int64(), metadata=about)
    fields = [index, *(field.with_nullable(True) for field in schema)]
    return with_votable(pa.schema(fields, schema.metadata), table_description(schema))


def _part_lists(parts: list[Path], scratch: Path) -> list[str | Path | UPath]:
    """Write files that each list some parts: one task of hats-import per part would be too many."""
    lists: list[str | Path | UPath] = []
    names: list[str] = []
    n_rows = 0
    for part in parts:
        names.append(str(part.resolve()))
        n_rows += read_footer(part)[1]
        if n_rows >= LIST_LEN or part is parts[-1]:
            path = scratch / f"parts-{len(lists):06d}.txt"
            path.write_text("\n".join(names) + "\n")
            lists.append(path)
            names, n_rows = [], 0
    return lists


def _write_index(catalog: Path, folder: Path, column: str, scratch: Path) -> None:
    """Write the index of a column: the partition of every value."""
    (folder / "dataset" / "index").mkdir(parents=True)
    schema = pa.schema(
        [
            pa.field(column, pa.int64()),
            pa.field(SPATIAL_INDEX_COLUMN, pa.int64()),
            pa.field("Norder", pa.uint8()),
            pa.field("Npix", pa.uint64()),
        ]
    )
    config: dict[str, Any] = {
        "memory_limit": INDEX_MEMORY,
        "temp_directory": str(scratch / "duckdb"),
        "threads": len(os.sched_getaffinity(0)),
    }
    query = f"""
        SELECT "{column}", "{SPATIAL_INDEX_COLUMN}",
            regexp_extract(filename, $partition, 1)::UTINYINT AS Norder,
            regexp_extract(filename, $partition, 2)::UBIGINT AS Npix
        FROM read_parquet($files, filename = true, hive_partitioning = false)
        ORDER BY "{column}"
    """
    files = f"{glob.escape(str(catalog))}/dataset/Norder=*/Dir=*/*.parquet"
    with (
        duckdb.connect(config=config) as database,
        pq.ParquetWriter(
            folder / "dataset" / "index" / "part.0.parquet",
            schema,
            compression="zstd",
            data_page_size=INDEX_PAGE_BYTES,
            sorting_columns=pq.SortingColumn.from_ordering(schema, [(column, "ascending")]),
        ) as writer,
    ):
        index = database.sql(query, params={"files": files, "partition": _PARTITION})
        for batch in index.to_arrow_reader(INDEX_LEN):
            writer.write_batch(batch.cast(schema))
    n_rows = write_parquet_metadata(folder, order_by_healpix=False)
    about: dict[str, Any] = {
        "catalog_name": folder.name,
        "catalog_type": "index",
        "total_rows": n_rows,
        "primary_catalog": catalog.name,
        "indexing_column": column,
    }
    about |= TableProperties.new_provenance_dict(folder, builder=_builder())
    TableProperties(**about).to_properties_file(folder)


def _builder() -> str:
    return f"photozhpc v{version('photozhpc')}"


def _placed(table: pa.Table) -> pa.Table:
    """Return the rows that have a position."""
    ra, dec = table.column("ra"), table.column("dec")
    placed = pc.and_(pc.is_finite(ra), pc.less_equal(pc.abs(dec), 90.0))
    return table if pc.all(placed).as_py() else table.filter(placed)
