"""Reads columns of a table file: Parquet, FITS, HDF5, VOTable, or text."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from photozhpc.errors import MosaicError, SourceListError, one_line
from photozhpc.files.disk import read_fault
from photozhpc.files.fits_length import check_length, unzipped
from photozhpc.files.objects import AnyPath, ObjectPath, is_remote
from photozhpc.sources.numbered_table import numbered_header, read_numbered
from photozhpc.sources.text_table import clean_name, decoded, find_layout, read_described, read_text

_PACKED = {b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"PK\x03\x04": "zip", b"\x28\xb5\x2f\xfd": "zstd"}
_MASK = ".mask"  # astropy's suffix of a column that holds another one's mask
_VOTABLE_KEY = b"IVOA.VOTable-Parquet.content"
_ASTROPY_KEY = b"table_meta_yaml"
_MISSING_WORDS = ("", "-", "--", "na", "n/a", "<na>", "nan", "null", "none", "masked", "\\n")
_LDAC_HEADER = "LDAC_IMHEAD"  # in FITS_LDAC the image's header, as a table of one row


@dataclass(frozen=True)
class Columns:
    """Columns of a table.

    Attributes:
        columns: the wanted ones, one entry per row, of native byte order. Masked and null values
            are missing: NaN in numbers, which are then float64, None in text.
        names: of all columns.
        units: that the file states, by name.
        frames: celestial frames that the file states, by name, such as "ICRS" or "eq_FK5 J2000".
        notes: lines about the table that was chosen.
    """

    columns: dict[str, NDArray]
    names: list[str]
    units: dict[str, str] = field(default_factory=dict)
    frames: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def renamed(self, new_name: Callable[[str], str]) -> "Columns":
        return Columns(
            {new_name(name): values for name, values in self.columns.items()},
            [new_name(name) for name in self.names],
            {new_name(name): unit for name, unit in self.units.items()},
            {new_name(name): frame for name, frame in self.frames.items()},
            self.notes,
        )


@dataclass(frozen=True, kw_only=True)
class TableFile(Columns):
    """Columns of a table file.

    Attributes:
        path: of the file.
        what: kind of table, for errors: "source list".
    """

    path: AnyPath
    what: str

    def find(self, name: str | None) -> str | None:
        """Return the column with that name, or else the one that differs only in case, or None.

        Raises:
            SourceListError: several columns match.
        """
        if name is None:
            return None
        matches = [column for column in self.names if column == name]
        matches = matches or [column for column in self.names if column.lower() == name.lower()]
        if len(matches) > 1:
            raise SourceListError(
                f"{self.path}: the {self.what} has {' and '.join(map(repr, matches))} for "
                f"'{name}'; rename all but one, or use the exact name"
            )
        return matches[0] if matches else None


def row_group_lengths(path: AnyPath) -> list[int] | None:
    """Return the number of rows of each row group of a local Parquet file; None: it is no such.

    Raises:
        SourceListError: it is a damaged one.
    """
    if is_remote(path) or not path.is_file():
        return None
    with open(path, "rb") as stream:
        if stream.read(4) != b"PAR1":
            return None
    try:
        with pq.ParquetFile(path) as file:
            _check_counts(file.metadata)
            groups = range(file.metadata.num_row_groups)
            return [file.metadata.row_group(group).num_rows for group in groups]
    except Exception as error:  # the reader lets any exception through if a file is damaged
        raise SourceListError(
            read_fault(path, error) or f"{path}: the table cannot be read ({one_line(error)})"
        ) from error


def read_columns(
    path: AnyPath,
    what: str,
    wanted: Callable[[str], bool] = lambda name: True,
    row_group: int | None = None,
) -> TableFile:
    """Return the wanted columns, and the names of all.

    The format is recognised by the content, not by the file's name; a .gz is unpacked.

    Args:
        what: kind of table, for errors: "source list".
        row_group: of a Parquet file (see `row_group_lengths`), to read only its rows.

    Raises:
        SourceListError: the file is missing, damaged, in an unknown format, or holds several
            tables of which none is the best choice.
    """
    if is_remote(path):
        return _read_fetched(path, what, wanted)
    if not path.is_file():
        raise SourceListError(f"{path}: no such {what}")
    if path.stat().st_size == 0:
        raise SourceListError(f"{path}: the {what} is empty; copy or make it again")
    try:
        with unzipped(path) as plain:
            return _read_plain(plain, path, what, wanted, row_group)
    except SourceListError:
        raise
    except MosaicError as error:
        raise SourceListError(str(error)) from error
    except Exception as error:  # the readers let any exception through if a table is damaged
        raise SourceListError(
            read_fault(path, error) or f"{path}: the {what} cannot be read ({one_line(error)})"
        ) from error


def _read_fetched(path: ObjectPath, what: str, wanted: Callable[[str], bool]) -> TableFile:
    try:
        with path.fetched() as copy:
            try:
                read = read_columns(copy, what, wanted)
            except SourceListError as error:
                raise SourceListError(str(error).replace(str(copy), str(path))) from error
    except FileNotFoundError as error:
        raise SourceListError(f"{path}: no such {what}") from error
    return replace(read, path=path)


def _read_plain(
    plain: Path,
    path: AnyPath,
    what: str,
    wanted: Callable[[str], bool],
    row_group: int | None = None,
) -> TableFile:
    def is_needed(name: str) -> bool:
        return wanted(clean_name(name).removesuffix(_MASK))

    with open(plain, "rb") as stream:
        head = stream.read(4096)
    packed = next((kind for magic, kind in _PACKED.items() if head.startswith(magic)), None)
    if packed is not None:
        raise SourceListError(f"{path}: is a {packed} file; unpack it, or compress it as .gz")
    if head.startswith(b"PAR1"):
        table = _read_parquet(plain, is_needed, row_group)
    elif head.startswith(b"SIMPLE"):
        check_length(plain, path)
        table = _read_fits(plain, is_needed)
    elif head.startswith(b"\x89HDF"):
        table = _read_hdf5(plain, is_needed)
    elif b"<VOTABLE" in head:
        table = _read_votable(plain, is_needed)
    else:
        text = decoded(plain.read_bytes())
        if text is None:
            raise SourceListError(
                f"{path}: unknown format; give the {what} as Parquet, FITS, VOTable, ECSV or CSV"
            )
        table = _read_text(text, is_needed)
    table = table.renamed(clean_name)
    columns = table.columns
    for name in [name for name in columns if name.endswith(_MASK)]:
        mask_N = columns.pop(name)
        masked = name.removesuffix(_MASK)
        if masked in columns:
            columns[masked] = _blanked(columns[masked], _as_mask(mask_N))
    shapes = {values.shape[:2] for values in columns.values()}
    if len(shapes) == 1 and (shape := shapes.pop())[0] == 1 and shape[1:] > (1,):
        # IDL's mwrfits writes a structure of arrays as one row whose cells are whole columns.
        columns = {name: values[0] for name, values in columns.items()}
    return TableFile(**{**vars(table), "columns": columns}, path=path, what=what)


def _read_parquet(
    path: Path, wanted: Callable[[str], bool], row_group: int | None = None
) -> Columns:
    with pq.ParquetFile(path, page_checksum_verification=True) as file:
        schema = file.schema_arrow
        _check_counts(file.metadata)
        names = [name for name in schema.names if wanted(name)]
        if row_group is None:
            table = file.read(columns=names)
        else:
            table = file.read_row_group(row_group, columns=names)
    columns = {
        name: table.column(i).to_numpy(zero_copy_only=False)
        for i, name in enumerate(table.column_names)
    }
    ranges = {name: r for name, r in _range_index(schema, len(table)).items() if wanted(name)}
    return Columns(columns | ranges, [*schema.names, *ranges], *_parquet_metadata(schema))


def _range_index(schema: pa.Schema, n: int) -> dict[str, NDArray]:
    """Return the range indices of a pandas table, which have no column in the file."""
    ranges: dict[str, NDArray] = {}
    for index in (schema.pandas_metadata or {}).get("index_columns", ()):
        if isinstance(index, dict) and index.get("kind") == "range":
            name = index.get("name")
            if isinstance(name, str) and name not in schema.names:
                values_N = np.arange(index["start"], index["stop"], index["step"])
                if len(values_N) == n:
                    ranges[name] = values_N
    return ranges


def _parquet_metadata(schema: pa.Schema) -> tuple[dict[str, str], dict[str, str]]:
    """Return units and frames by name, from the fields, astropy's metadata, or a VOTable."""
    units: dict[str, str] = {}
    frames: dict[str, str] = {}
    metadata = schema.metadata or {}
    if _ASTROPY_KEY in metadata:
        from astropy.table.meta import get_header_from_yaml

        header = get_header_from_yaml(metadata[_ASTROPY_KEY].decode().splitlines())
        units |= {col["name"]: str(col["unit"]) for col in header["datatype"] if col.get("unit")}
        for name, mixin in header.get("meta", {}).get("__serialized_columns__", {}).items():
            if str(mixin.get("__class__", "")).endswith("SkyCoord"):
                frame = " ".join(str(mixin[key]) for key in ("frame", "equinox") if key in mixin)
                frames |= {part: frame for part in schema.names if part.startswith(f"{name}.")}
    if _VOTABLE_KEY in metadata:
        root = ElementTree.fromstring(metadata[_VOTABLE_KEY])
        elements = [(element.tag.rpartition("}")[2], element.attrib) for element in root.iter()]
        systems = {
            system.get("ID"): _frame(system.get("system"), system.get("equinox"))
            for tag, system in elements
            if tag == "COOSYS"
        }
        for column in (attributes for tag, attributes in elements if tag == "FIELD"):
            if column.get("unit"):
                units[column["name"]] = column["unit"]
            if column.get("ref") in systems:
                frames[column["name"]] = systems[column["ref"]]
    for arrow_field in schema:
        stated = {key.lower(): value for key, value in (arrow_field.metadata or {}).items()}
        if unit := stated.get(b"unit") or stated.get(b"units"):
            units[arrow_field.name] = unit.decode(errors="replace")
    return units, frames


def _frame(system: str | None, equinox: str | None) -> str:
    """Return the frame of a COOSYS: "eq_FK5 J2000"."""
    return " ".join(filter(None, (system, equinox)))


def _check_counts(metadata: pq.FileMetaData) -> None:
    """Check that all row counts in the file agree: nothing else protects them.

    Raises:
        ValueError: they do not.
    """
    schema, n_columns = metadata.schema, metadata.num_columns
    flat = [j for j in range(n_columns) if not schema.column(j).max_repetition_level]
    groups = [metadata.row_group(index) for index in range(metadata.num_row_groups)]
    odd = any(group.column(j).num_values != group.num_rows for group in groups for j in flat)
    if odd or sum(group.num_rows for group in groups) != metadata.num_rows:
        raise ValueError("its row counts contradict each other")


def _read_text(text: str, wanted: Callable[[str], bool]) -> Columns:
    header = numbered_header(text)
    if header is not None:
        return Columns(read_numbered(text, header.names, wanted), header.names, header.units)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the error says what is wrong
        described = read_described(text)
        if described is not None:
            return _from_astropy(described, wanted)
        layout = find_layout(text, wanted)
        table = _from_astropy(read_text(text, layout), wanted)
        table.units.update(layout.units)
        return table


def _read_fits(path: Path, wanted: Callable[[str], bool]) -> Columns:
    """Read the table with the most wanted columns (see `_choose`)."""
    from astropy.io import fits
    from astropy.table import Table

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the error says what is wrong
        counts: dict[int, tuple[str, int]] = {}
        with fits.open(path) as hdus:
            for index, hdu in enumerate(hdus):
                if isinstance(hdu, fits.BinTableHDU | fits.TableHDU) and hdu.name != _LDAC_HEADER:
                    label = f"{index} '{hdu.name}'" if hdu.name else f"{index}"
                    counts[index] = label, sum(map(wanted, hdu.columns.names))
            best, notes = _choose(counts, path)
            nulls = _scaled_nulls(hdus[best], wanted)
            frame = _fits_frame(hdus[best].header)
        table = _from_astropy(Table.read(path, format="fits", hdu=best), wanted)
        for name, null_N in nulls.items():
            table.columns[name] = _blanked(table.columns[name], null_N)
        frames = dict.fromkeys(table.names, frame) if frame else {}
        return replace(table, frames=frames, notes=notes)


def _scaled_nulls(hdu: Any, wanted: Callable[[str], bool]) -> dict[str, NDArray[np.bool_]]:
    """Return where columns with TSCAL or TZERO are null, by name.

    TNULL is the integer in the file (FITS 4.0, section 7.3.2); astropy compares it with the scaled
    number.
    """
    return {
        column.name: hdu.data.view(np.ndarray)[column.name] == column.null
        for column in hdu.columns
        if (column.bscale not in (None, "", 1) or column.bzero not in (None, "", 0))
        and isinstance(column.null, int)
        and wanted(column.name)
    }


def _fits_frame(header: Any) -> str:
    """Return the B1950 frame that a table's header states; "" if it states none or J2000."""
    system = str(header.get("RADESYS", header.get("RADECSYS", ""))).strip()
    equinox = header.get("EQUINOX", "")
    is_old = system.upper().startswith("FK4") or (not system and equinox in (1950, 1950.0))
    return _frame(system or "FK4", str(equinox)) if is_old else ""


def _choose(counts: dict[int, tuple[str, int]], path: Path) -> tuple[int, list[str]]:
    """Return the table that has the most wanted columns, and a note on the others.

    Args:
        counts: each table's label and its number of wanted columns.

    Raises:
        ValueError: there is none, or several have equally many.
    """
    if not counts:
        raise ValueError("it holds no table")
    most = max(n_wanted for _, n_wanted in counts.values())
    best, *equals = [index for index, (_, n_wanted) in counts.items() if n_wanted == most]
    if equals and most:
        labels = ", ".join(counts[index][0] for index in (best, *equals))
        raise ValueError(
            f"{1 + len(equals)} of its tables fit equally well; join them, or write each to its "
            f"own file: {labels}"
        )
    others = [label for index, (label, n) in counts.items() if n and index != best]
    if not others:
        return best, []
    return best, [f"{path.name}: table {counts[best][0]} was read, but not {', '.join(others)}"]


def _read_hdf5(path: Path, wanted: Callable[[str], bool]) -> Columns:
    import h5py
    from astropy.table import Table

    counts: dict[int, tuple[str, int]] = {}
    names: list[str] = []

    def add_table(name: str, item: Any) -> None:
        is_table = isinstance(item, h5py.Dataset) and item.dtype.names is not None
        if is_table and not name.endswith("__table_column_meta__"):
            counts[len(names)] = f"'{name}'", sum(map(wanted, item.dtype.names))
            names.append(name)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the error says what is wrong
        with h5py.File(path) as file:
            file.visititems(add_table)
        if not names:
            raise ValueError("it holds no table of rows; write one with astropy, or as Parquet")
        best, notes = _choose(counts, path)
        table = Table.read(path, format="hdf5", path=names[best])
        return replace(_from_astropy(table, wanted), notes=notes)


def _read_votable(path: Path, wanted: Callable[[str], bool]) -> Columns:
    from astropy.io.votable import parse

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the error says what is wrong
        file = parse(path)
        tables = list(file.iter_tables())
        names = [_names_by_id(table.fields, wanted) for table in tables]
        counts = {
            index: (f"'{table.ID or table.name or index}'", sum(map(wanted, name_of.values())))
            for index, (table, name_of) in enumerate(zip(tables, names, strict=True))
        }
        best, notes = _choose(counts, path)
        name_of = names[best]
        table = _from_astropy(tables[best].to_table(), lambda column_id: wanted(name_of[column_id]))
        systems = {
            system.ID: _frame(system.system, system.equinox) for system in file.iter_coosys()
        }
        frames = {f.ID: systems[f.ref] for f in tables[best].fields if f.ref in systems}
        return replace(table, frames=frames, notes=notes).renamed(name_of.__getitem__)


def _names_by_id(fields: Any, wanted: Callable[[str], bool]) -> dict[str, str]:
    """Return the names of a VOTable's columns by ID (NED's IDs are main_col1, ...).

    The name is the ID where there is no name, or only the ID is wanted.
    """
    names = {f.name.lower() for f in fields if f.name}
    return {
        f.ID: f.ID if not f.name or (wanted(f.ID) and f.ID.lower() not in names) else f.name
        for f in fields
    }


def _from_astropy(table: Any, wanted: Callable[[str], bool]) -> Columns:
    """Return the wanted columns of an astropy table; a SkyCoord c gives c.ra and c.dec."""
    columns: dict[str, Any] = {}
    units: dict[str, str] = {}
    for name in table.colnames:
        icrs = getattr(table[name], "icrs", None)
        if icrs is not None:
            columns |= {f"{name}.ra": icrs.ra.deg, f"{name}.dec": icrs.dec.deg}
        else:
            columns[name] = table[name]
            unit = getattr(table[name], "unit", None)
            units |= {name: str(unit)} if unit is not None else {}
    filled = {name: _filled(column) for name, column in columns.items() if wanted(name)}
    return Columns(filled, list(columns), units)


def _filled(column: object) -> NDArray:
    """Turn a table column into an array of native byte order; masked values are missing."""
    values_N: Any = np.ma.asanyarray(column)
    array_N = np.asarray(values_N)
    array_N = array_N.astype(array_N.dtype.newbyteorder("="))
    return _blanked(array_N, np.ma.getmaskarray(values_N)) if np.ma.is_masked(values_N) else array_N


def _blanked(values_N: NDArray, mask_N: NDArray[np.bool_]) -> NDArray:
    """Return the values with NaN (None in text) where the mask is set."""
    if not mask_N.any():
        return values_N
    is_number = values_N.dtype.kind in "iufb"
    blanked_N = values_N.astype(np.float64 if is_number else object)
    blanked_N[mask_N] = np.nan if is_number else None
    return blanked_N


def as_floats(values_N: NDArray) -> NDArray[np.float64]:
    """Return the numbers of a column, also those written as text; NaN for words like 'null'.

    Raises:
        TypeError, ValueError: they are not numbers, such as dates, or 10:00:28.6 for degrees.
    """
    if values_N.dtype.kind not in "iufOSU":  # NumPy would convert dates and complex numbers
        raise TypeError(str(values_N.dtype))
    if values_N.dtype.kind in "OSU":
        values_N = np.array([_number_in(value) for value in values_N.tolist()])
    return np.asarray(values_N, dtype=np.float64)


def _number_in(value: Any) -> float:
    if value is None:
        return np.nan
    if isinstance(value, bytes):
        value = value.decode("latin-1")
    if not isinstance(value, str):
        return float(value)
    if value.strip().lower() in _MISSING_WORDS:
        return np.nan
    if "_" in value or ":" in value:  # Python groups digits by '_'; ':' is sexagesimal
        raise ValueError(f"{value!r}; write decimal degrees")
    if "," in value:
        raise ValueError(f"{value!r}; write a decimal point")
    return float(value)


def _as_mask(values_N: NDArray) -> NDArray[np.bool_]:
    """Read a column that holds another one's mask; CSV has the words True and False."""
    if values_N.dtype.kind in "OSU":
        words = [str(value).strip().lower() for value in values_N]
        return np.array([word not in ("false", "0", "f") for word in words], bool)
    return values_N.astype(bool)
