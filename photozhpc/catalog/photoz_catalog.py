"""The photo-z catalogue: the only file that knows the Parquet schema.

    OUT/catalog/part-000000.parquet     one row per source, in the order of the store

Columns are named as in the Roman source catalogue; a missing value is null, never a number. The
schema has units, UCDs and descriptions, per field and as a VOTable (the VOParquet convention, IVOA
Note 1.0), so that TOPCAT and astropy show them. Pages carry checksums.
"""

import enum
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from photozhpc.catalog.notes import (
    PART_FOLDER,
    PART_KEY,
    PART_NAME,
    Counts,
    FileNote,
    PartNote,
    RunNotes,
    check_sha256,
    part_name,
    read_run,
    run_folder_of,
)
from photozhpc.catalog.part_file import check_identity, damage_reported, write_part_file
from photozhpc.catalog.votable import with_votable
from photozhpc.errors import CatalogError, did_you_mean
from photozhpc.survey import Survey

# 2: intervals and photoz_ood; 3: Kron fluxes; 4: star_probability; 5: mean, median, mode, 95%
SCHEMA_VERSION = 5
# Column -> quantile, in the order of the columns. The levels are those of model/density.py.
QUANTILE_LEVELS = {
    "photoz_median": 0.5,
    "photoz_low68": 0.16,
    "photoz_high68": 0.84,
    "photoz_low90": 0.05,
    "photoz_high90": 0.95,
    "photoz_low95": 0.025,
    "photoz_high95": 0.975,
    "photoz_low99": 0.005,
    "photoz_high99": 0.995,
}
SCHEMA_VERSION_KEY = b"photozhpc.schema_version"
# astropy reads the length of a text column under this key, else it guesses.
TEXT_LENGTH_KEY = b"table::len::tile_id"


class PhotozFlag(enum.IntFlag):
    """What happened to a source on its way to a redshift. 0: nothing.

    Attributes:
        OFF_TILE: it is on no mosaic of the tile.
        MISSING_BAND: a band holds no data where the network looks.
        BAD_PIXELS: no data in the middle of the image, or in 5% of it, in some band.
        NO_PHOTOZ: too little data: photoz is null.
        SHARP_DEFECT: light in one band that is not from the sky, like that of a cosmic ray or a
            hot pixel; or a dead band.
        OTHER_NOISE: the noise of a band is lower or higher than in all training.
        UNUSUAL: photoz_ood is above 1, as for 1% of the training images.
        IMPLAUSIBLE: photoz is negative, or outside its own 99% interval.
    """

    OFF_TILE = 1
    MISSING_BAND = 2
    BAD_PIXELS = 4
    NO_PHOTOZ = 8
    SHARP_DEFECT = 16
    OTHER_NOISE = 32
    UNUSUAL = 64
    IMPLAUSIBLE = 128


def count_rows(table: pa.Table) -> Counts:
    """Count the rows of a table that has the column photoz_flags."""
    flags_N = table.column("photoz_flags").to_numpy()
    return Counts(
        rows=len(flags_N),
        flagged=int(np.count_nonzero(flags_N)),
        without_photoz=int(np.count_nonzero(flags_N & PhotozFlag.NO_PHOTOZ)),
        sharp_defects=int(np.count_nonzero(flags_N & PhotozFlag.SHARP_DEFECT)),
        other_noise=int(np.count_nonzero(flags_N & PhotozFlag.OTHER_NOISE)),
    )


# UCDs of known bands, by their wavelength; other bands get none rather than a guess.
_UCD_OF_BAND = {
    **dict.fromkeys(("F062", "r"), "em.opt.R"),
    **dict.fromkeys(("F087", "F814W", "i", "z"), "em.opt.I"),
    **dict.fromkeys(("F606W",), "em.opt.V"),
    **dict.fromkeys(("F106", "F129", "F105W", "F125W", "Y106", "Y", "J", "J129"), "em.IR.J"),
    **dict.fromkeys(("F158", "F184", "F160W", "H", "H158", "K184"), "em.IR.H"),
    **dict.fromkeys(("F213", "K", "K213"), "em.IR.K"),
}


@lru_cache(maxsize=8)
def catalog_schema(survey: Survey) -> pa.Schema:
    """Return the schema of a survey's catalogue, with the VOTable in its metadata.

    Raises:
        CatalogError: two of the survey's aperture radii would share a column.
    """
    flags = ", ".join(f"{flag.value} {flag.name}" for flag in PhotozFlag)
    fields = [
        _field("source_id", pa.int64(), "", "meta.id;meta.main", "identifier of the source list"),
        _field("ra", pa.float64(), "deg", "pos.eq.ra;meta.main", "right ascension, ICRS"),
        _field("dec", pa.float64(), "deg", "pos.eq.dec;meta.main", "declination, ICRS"),
        _field("tile_id", pa.string(), "", "meta.id;obs.field", "tile it was measured on"),
        _field("photoz", pa.float32(), "", "src.redshift.phot", "photometric redshift"),
        _field(
            "photoz_mean",
            pa.float32(),
            "",
            "src.redshift.phot;stat.mean",
            "mean of the density of redshift",
        ),
        _field(
            "photoz_mode",
            pa.float32(),
            "",
            "src.redshift.phot",
            "where the density of redshift is highest, before calibration",
        ),
        *(
            _field(name, pa.float32(), "", *_quantile_about(name, level))
            for name, level in QUANTILE_LEVELS.items()
        ),
        _field(
            "photoz_ood",
            pa.float32(),
            "",
            "stat.value",
            "distance to the training images in latent space; 1: as far out as 1% of them",
        ),
        _field("photoz_flags", pa.int32(), "", "meta.code.qual", f"sum of: {flags}"),
        _field(
            "star_probability",
            pa.float32(),
            "",
            "stat.probability;src.class.starGalaxy",
            "probability of a star, or another point source, from its fluxes in two apertures",
        ),
    ]
    for band in survey.bands:
        em = _UCD_OF_BAND.get(band.name)
        ucd = f"phot.flux;{em}" if em else "phot.flux"
        fluxes = [
            *(
                (flux_column(r, band.name), f"within {r:g} arcsec")
                for r in survey.aperture_radii_arcsec
            ),
            (kron_column(band.name), "in the Kron ellipse, the same in all bands"),
        ]
        for name, where in fluxes:
            text = f"{band.name} flux {where}, local sky subtracted"
            fields += [
                _field(name, pa.float32(), "nJy", ucd, text),
                _field(f"{name}_err", pa.float32(), "nJy", f"stat.error;{ucd}", f"error of {name}"),
            ]
    names = [field.name for field in fields]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise CatalogError(
            f"survey '{survey.name}': two bands or aperture radii give the column "
            f"'{repeated[0]}'; radii must differ by 0.1 arcsec or more"
        )
    about = f"Photometric redshifts of survey {survey.name}, by photozhpc"
    return with_votable(
        pa.schema(fields, metadata={SCHEMA_VERSION_KEY: str(SCHEMA_VERSION)}), about
    )


def flux_column(radius_arcsec: float, band_name: str) -> str:
    """Return the name of an aperture-flux column: aper{RR}_{band}_flux, RR in 0.1 arcsec."""
    return f"aper{round(radius_arcsec * 10):02d}_{band_name.lower()}_flux"


def kron_column(band_name: str) -> str:
    """Return the name of a Kron-flux column."""
    return f"kron_{band_name.lower()}_flux"


def make_table(
    survey: Survey,
    *,
    source_id_N: NDArray[np.int64],
    ra_N: NDArray[np.float64],
    dec_N: NDArray[np.float64],
    tile_id_N: NDArray[np.str_],
    photoz_N: NDArray[np.float32],
    quantile_NQ: NDArray[np.float32],
    ood_N: NDArray[np.float32],
    photoz_flags_N: NDArray[np.int32],
    flux_NCR: NDArray[np.float32],
    flux_err_NCR: NDArray[np.float32],
    mean_N: NDArray[np.float32] | None = None,
    mode_N: NDArray[np.float32] | None = None,
    kron_flux_NC: NDArray[np.float32] | None = None,
    kron_flux_err_NC: NDArray[np.float32] | None = None,
    star_probability_N: NDArray[np.float32] | None = None,
) -> pa.Table:
    """Return one row per source; numbers that are not finite become null.

    Args:
        quantile_NQ: quantiles of the redshift at the levels of QUANTILE_LEVELS, ascending.
        mean_N, mode_N, kron_flux_NC, kron_flux_err_NC, star_probability_N: None: null.
    """
    unknown_N = np.full(len(source_id_N), np.nan, np.float32)
    if kron_flux_NC is None or kron_flux_err_NC is None:
        kron_flux_NC = kron_flux_err_NC = np.full(flux_NCR.shape[:2], np.nan, np.float32)
    schema = catalog_schema(survey)
    columns: dict[str, Any] = {
        "source_id": source_id_N,
        "ra": ra_N,
        "dec": dec_N,
        "tile_id": pa.array(tile_id_N, pa.string()),
        "photoz": _null_where_not_finite(photoz_N),
        "photoz_mean": _null_where_not_finite(unknown_N if mean_N is None else mean_N),
        "photoz_mode": _null_where_not_finite(unknown_N if mode_N is None else mode_N),
        **{
            name: _null_where_not_finite(quantile_NQ[:, sorted(QUANTILE_LEVELS.values()).index(q)])
            for name, q in QUANTILE_LEVELS.items()
        },
        "photoz_ood": _null_where_not_finite(ood_N),
        "photoz_flags": photoz_flags_N.astype(np.int32),
        "star_probability": _null_where_not_finite(
            unknown_N if star_probability_N is None else star_probability_N
        ),
    }
    for c, band in enumerate(survey.bands):
        for r, radius_arcsec in enumerate(survey.aperture_radii_arcsec):
            name = flux_column(radius_arcsec, band.name)
            columns[name] = _null_where_not_finite(flux_NCR[:, c, r])
            columns[f"{name}_err"] = _null_where_not_finite(flux_err_NCR[:, c, r])
        name = kron_column(band.name)
        columns[name] = _null_where_not_finite(kron_flux_NC[:, c])
        columns[f"{name}_err"] = _null_where_not_finite(kron_flux_err_NC[:, c])
    arrays = [pa.array(columns[field.name], field.type) for field in schema]
    return pa.Table.from_arrays(arrays, schema=schema)


def write_part(
    table: pa.Table, path: Path, identity: Mapping[str, Any], provenance: str = "{}"
) -> PartNote:
    """Write a part so that it is there whole or not at all; see `part_file.write_part_file`.

    The run syncs the folder when it ends; it makes a part again that a power cut took away.

    Raises:
        RunError: the disk is full, or cannot be written.
    """
    length = str(text_length(table["tile_id"])).encode()
    file = write_part_file(
        table, path, identity, provenance, {TEXT_LENGTH_KEY: length}, use_dictionary=["tile_id"]
    )
    return PartNote(count_rows(table), file)


def text_length(column: pa.ChunkedArray) -> int:
    """Return the length of the longest text in a column, in bytes; at least 1."""
    return max(1, pc.max(pc.binary_length(column)).as_py() or 0)


def check_part(path: Path, identity: Mapping[str, Any], n_rows: int, schema: pa.Schema) -> PartNote:
    """Read a whole part, with its checksums, and count its rows.

    Raises:
        CatalogError: it is missing, damaged, or of other shards or another run.
    """
    with damage_reported(path):
        content = path.read_bytes()
        with pq.ParquetFile(pa.BufferReader(content), page_checksum_verification=True) as file:
            check_identity(path, file.schema_arrow.metadata, identity)
            if file.metadata.num_rows != n_rows or not file.schema_arrow.equals(schema):
                raise CatalogError(f"{path}: has other rows or columns than the run makes")
            counts = count_rows(file.read())
    return PartNote(counts, FileNote.of(content))


def read_catalog(
    path: str | Path,
    columns: Sequence[str] | None = None,
    *,
    incomplete_ok: bool = False,
    verify: bool = False,
) -> pa.Table:
    """Read a catalogue, one row per source, in the order of the store.

    Units and descriptions are in the metadata of the schema's fields. In the folder of a run,
    every part must be of that run, under its own name, with the rows and bytes of its note.

    Args:
        path: the --out folder of `photozhpc infer`, its catalog/ folder, or one part.
        columns: names of the columns to read; None: all.
        incomplete_ok: read the finished parts of an unfinished run.
        verify: read every part whole, and compare its SHA-256 with its note too.

    Raises:
        CatalogError: there is no catalogue; a part is missing, damaged or differs from its note;
            a column is unknown; or, with `verify`, the run has no note on a part.
    """
    parts = catalog_parts(path, incomplete_ok=incomplete_ok)
    run_notes = RunNotes.beside(parts[0])
    if verify and (unnoted := [part for part in parts if run_notes.note(part) is None]):
        raise CatalogError(
            f"{unnoted[0]}: cannot be verified, because the run has no note on it; run the same "
            f"'photozhpc infer' again, or copy its notes/ folder and run.json too"
        )
    tables = [read_part(part, columns, run_notes, verify=verify) for part in parts]
    try:
        table = pa.concat_tables(tables)
    except pa.ArrowException as error:
        raise CatalogError(f"{path}: holds parts of different catalogues") from error
    if not incomplete_ok:
        check_n_rows(path, len(table))
    return table


def check_n_rows(path: str | Path, n_rows: int) -> None:
    """Check that the parts of a catalogue have as many rows as its run made.

    Raises:
        CatalogError: they have more or fewer.
    """
    out = None if Path(path).is_file() else run_folder_of(Path(path))
    if out is not None and n_rows != (n_made := read_run(out).n_rows):
        raise CatalogError(
            f"{path}: damaged: the parts hold {n_rows} rows, the run made {n_made}; "
            f"'photozhpc verify' names the part"
        )


def read_part(
    part: Path,
    columns: Sequence[str] | None = None,
    run_notes: RunNotes | None = None,
    *,
    verify: bool = False,
) -> pa.Table:
    """Read one file of a catalogue, with its checksums; arguments and errors as `read_pieces`."""
    return pa.concat_tables(read_pieces(part, columns, run_notes, verify=verify))


def read_pieces(
    part: Path,
    columns: Sequence[str] | None = None,
    run_notes: RunNotes | None = None,
    *,
    verify: bool = False,
) -> Iterator[pa.Table]:
    """Yield the row groups of one file of a catalogue, with checksums; at least one table.

    Args:
        run_notes, verify: passed to `open_part`.

    Raises:
        CatalogError: it is missing, damaged or differs from its note, or a column is unknown.
    """
    with open_part(part, run_notes, verify=verify) as file:
        names = file.schema_arrow.names
        for name in columns or ():
            if name not in names:
                raise CatalogError(
                    f"{part}: the catalogue has no column '{name}'{did_you_mean(name, names)}"
                )
        names = names if columns is None else list(columns)
        metadata = dict(file.schema_arrow.metadata or {})
        for key_of_the_part in (PART_KEY, TEXT_LENGTH_KEY):
            metadata.pop(key_of_the_part, None)
        for group in range(file.num_row_groups):
            yield file.read_row_group(group, names).replace_schema_metadata(metadata)
        if not file.num_row_groups:
            empty = file.schema_arrow.empty_table().select(names)
            yield empty.replace_schema_metadata(metadata)


@contextmanager
def open_part(
    part: Path, run_notes: RunNotes | None = None, *, verify: bool = False
) -> Iterator[pq.ParquetFile]:
    """Open a file of a catalogue, which must be the part that its name says.

    Pages are checked when they are read.

    Args:
        run_notes: notes on the files beside it, for a caller that opens many; None: read them.
        verify: read the file whole, and compare its SHA-256 with its note, if there is one.

    Raises:
        CatalogError: it is missing, damaged, altered, or another part.
    """
    run_notes = RunNotes.beside(part) if run_notes is None else run_notes
    note = run_notes.note(part)
    with damage_reported(part):
        content = part.read_bytes() if verify and note is not None else None
        source = part if content is None else pa.BufferReader(content)
        with pq.ParquetFile(source, page_checksum_verification=True) as file:
            run_notes.check_place(part, file.schema_arrow.metadata)
            run_notes.check_size(part, file.metadata.num_rows)
            if content is not None and note is not None:
                check_sha256(part, content, note.file)
            yield file


def catalog_parts(path: str | Path, *, incomplete_ok: bool = False) -> list[Path]:
    """Return the files of a catalogue, in order.

    Raises:
        CatalogError: there is no catalogue, or, unless `incomplete_ok`, parts of it are missing.
    """
    path = Path(path)
    if path.is_file():
        return [path]
    folder = path / PART_FOLDER if (path / PART_FOLDER).is_dir() else path
    out = run_folder_of(path)
    n_parts = None if out is None else read_run(out).n_parts
    parts = part_files(folder, n_parts)
    if n_parts is not None and len(parts) < n_parts and not incomplete_ok:
        raise CatalogError(
            f"{path}: the catalogue is not finished: {len(parts)} of {n_parts} parts; run the "
            f"same 'photozhpc infer' again to finish it"
        )
    if not parts:
        raise CatalogError(f"{path}: no catalogue there; make one with 'photozhpc infer'")
    return parts


def part_files(folder: Path, n_parts: int | None) -> list[Path]:
    """Return the parts in a folder, in order, without files whose names only resemble a part's.

    Args:
        n_parts: parts of the run; None: unknown.
    """
    paths = {path.name: path for path in folder.glob("part-*.parquet")}
    if n_parts is not None:
        return [paths[name] for name in map(part_name, range(n_parts)) if name in paths]
    return [paths[name] for name in sorted(paths) if PART_NAME.fullmatch(name)]


def _field(name: str, kind: pa.DataType, unit: str, ucd: str, description: str) -> pa.Field:
    metadata = {"ucd": ucd, "description": description, **({"unit": unit} if unit else {})}
    return pa.field(name, kind, nullable=name not in _NEVER_NULL, metadata=metadata)


def _quantile_about(name: str, level: float) -> tuple[str, str]:
    """Return the UCD and the description of a quantile."""
    ucd = "src.redshift.phot;stat."
    if level == 0.5:
        return f"{ucd}median", "median of the density of redshift"
    side = "lower" if level < 0.5 else "upper"
    text = f"{side} end of the central {name[-2:]}% interval: quantile {level:g}"
    return f"{ucd}{'min' if level < 0.5 else 'max'}", text


_NEVER_NULL = ("source_id", "ra", "dec", "tile_id", "photoz_flags")


def _null_where_not_finite(values_N: NDArray[np.float32]) -> pa.Array:
    finite_N = np.isfinite(values_N)
    mask_N = None if finite_N.all() else ~finite_N
    return pa.array(np.ascontiguousarray(values_N), mask=mask_N)
