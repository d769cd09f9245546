"""Columns of a table file: Parquet, FITS, VOTable, or text."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
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
_MASK = ".mask"  # what astropy calls the column that holds the mask of another
_VOTABLE_KEY = b"IVOA.VOTable-Parquet.content"
_ASTROPY_KEY = b"table_meta_yaml"
_TEXT_FOR_NOTHING = ("", "-", "--", "na", "n/a", "<na>", "nan", "null", "none", "masked", "\\n")
_LDAC_HEADER = "LDAC_IMHEAD"  # of FITS_LDAC: the image's header, as a table of one row


@dataclass(frozen=True)
class TableFile:
    """Columns of a table file.

    Attributes:
        path, what: for errors: "source list".
        columns: those that were wanted, one entry a row, of native byte order. What is masked or
            null is missing: NaN in numbers, which are float64 then, None in text.
        names: of all columns.
        units: that the file states, by name.
        frames: celestial frames that the file states, by name, such as "ICRS" or "eq_FK5 J2000".
        notes: lines on what was chosen.
    """

    path: AnyPath
    what: str
    columns: dict[str, NDArray]
    names: list[str]
    units: dict[str, str] = field(default_factory=dict)
    frames: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def find(self, name: str | None) -> str | None:
        """Return the column of that name, or else of that name in another case; None: none.

        Raises:
            SourceListError: several columns have it.
        """
        if name is None:
            return None
        found = [known for known in self.names if known == name]
        found = found or [known for known in self.names if known.lower() == name.lower()]
        if len(found) > 1:
            raise SourceListError(
                f"{self.path}: which column of the {self.what} is '{name}'? "
                f"It has {' and '.join(repr(it) for it in found)}; rename one, or name the one "
                f"that is meant as it is written"
            )
        return found[0] if found else None


def read_columns(
    path: AnyPath, what: str, wanted: Callable[[str], bool] = lambda name: True
) -> TableFile:
    """Return the columns that are wanted, and the names of all.

    The content says of which kind a file is, and not its name; a .gz is unpacked.

    Args:
        what: the table is, for errors: "source list".

    Raises:
        SourceListError: the file is missing, damaged, of another kind, or holds several tables
            any of which could be meant.
    """
    if is_remote(path):
        return _read_fetched(path, what, wanted)
    if not path.is_file():
        raise SourceListError(f"{path}: no such {what}")
    if path.stat().st_size == 0:
        raise SourceListError(f"{path}: the {what} is empty; copy or make it again")
    try:
        with unzipped(path) as plain:
            return _read_plain(plain, path, what, wanted)
    except SourceListError:
        raise
    except MosaicError as error:
        raise SourceListError(str(error)) from error
    except Exception as error:  # the readers of damaged tables raise whatever they run into
        line = one_line(error)
        raise SourceListError(
            read_fault(path, error) or f"{path}: the {what} cannot be read ({line})"
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
    return TableFile(path, what, read.columns, read.names, read.units, read.frames, read.notes)


def _read_plain(plain: Path, path: AnyPath, what: str, wanted: Callable[[str], bool]) -> TableFile:
    def is_needed(name: str) -> bool:
        return wanted(clean_name(name).removesuffix(_MASK))

    with open(plain, "rb") as stream:
        head = stream.read(4096)
    packed = next((kind for magic, kind in _PACKED.items() if head.startswith(magic)), None)
    if packed is not None:
        raise SourceListError(f"{path}: is packed ({packed}); unpack it first, or pack it as .gz")
    if head.startswith(b"PAR1"):
        found = _read_parquet(plain, is_needed)
    elif head.startswith(b"SIMPLE"):
        check_length(plain, path)
        found = _read_fits(plain, is_needed)
    elif head.startswith(b"\x89HDF"):
        found = _read_hdf5(plain, is_needed)
    elif b"<VOTABLE" in head:
        found = _read_votable(plain, is_needed)
    else:
        text = decoded(plain.read_bytes())
        if text is None:
            raise SourceListError(
                f"{path}: unknown kind of {what}; give Parquet, FITS, VOTable, ECSV or CSV"
            )
        found = _read_text(text, is_needed)
    columns = {clean_name(name): values for name, values in found.columns.items()}
    for name in [name for name in columns if name.endswith(_MASK)]:
        mask_N = columns.pop(name)
        masked = name.removesuffix(_MASK)
        if masked in columns:
            columns[masked] = _blanked(columns[masked], _as_mask(mask_N))
    shapes = {values.shape[:2] for values in columns.values()}
    if len(shapes) == 1 and (shape := shapes.pop())[0] == 1 and shape[1:] > (1,):
        # IDL's mwrfits writes a structure of arrays as one row, of which each cell is a column.
        columns = {name: values[0] for name, values in columns.items()}
    return TableFile(
        path,
        what,
        columns,
        [clean_name(name) for name in found.names],
        {clean_name(name): unit for name, unit in found.units.items()},
        {clean_name(name): frame for name, frame in found.frames.items()},
        found.notes,
    )


@dataclass(frozen=True)
class _Found:
    """As TableFile, with the names as they are in the file."""

    columns: dict[str, NDArray]
    names: list[str]
    units: dict[str, str] = field(default_factory=dict)
    frames: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def _read_parquet(path: Path, wanted: Callable[[str], bool]) -> _Found:
    with pq.ParquetFile(path, page_checksum_verification=True) as file:
        schema = file.schema_arrow
        _check_counts(file.metadata)
        table = file.read(columns=[name for name in schema.names if wanted(name)])
    columns = {
        name: table.column(i).to_numpy(zero_copy_only=False)
        for i, name in enumerate(table.column_names)
    }
    index = {name: it for name, it in _range_index(schema, len(table)).items() if wanted(name)}
    units, frames = _said_of_parquet(schema)
    return _Found(columns | index, [*schema.names, *index], units, frames)


def _range_index(schema: pa.Schema, n: int) -> dict[str, NDArray]:
    """Return the index of a table of pandas that is a range, which has no column in the file."""
    index: dict[str, NDArray] = {}
    for it in (schema.pandas_metadata or {}).get("index_columns", ()):
        if isinstance(it, dict) and it.get("kind") == "range" and isinstance(it.get("name"), str):
            values_N = np.arange(it["start"], it["stop"], it["step"])
            if len(values_N) == n and it["name"] not in schema.names:
                index[it["name"]] = values_N
    return index


def _said_of_parquet(schema: pa.Schema) -> tuple[dict[str, str], dict[str, str]]:
    """Return units and frames by name: of the fields, of astropy's description, of a VOTable."""
    units: dict[str, str] = {}
    frames: dict[str, str] = {}
    about = schema.metadata or {}
    if _ASTROPY_KEY in about:
        from astropy.table.meta import get_header_from_yaml

        header = get_header_from_yaml(about[_ASTROPY_KEY].decode().splitlines())
        units |= {it["name"]: str(it["unit"]) for it in header["datatype"] if it.get("unit")}
        for name, it in header.get("meta", {}).get("__serialized_columns__", {}).items():
            if str(it.get("__class__", "")).endswith("SkyCoord"):
                frame = " ".join(str(it[key]) for key in ("frame", "equinox") if key in it)
                frames |= {known: frame for known in schema.names if known.startswith(f"{name}.")}
    if _VOTABLE_KEY in about:
        root = ElementTree.fromstring(about[_VOTABLE_KEY])
        elements = [(it.tag.rpartition("}")[2], it.attrib) for it in root.iter()]
        systems = {
            it.get("ID"): _frame(it.get("system"), it.get("equinox"))
            for tag, it in elements
            if tag == "COOSYS"
        }
        for it in (it for tag, it in elements if tag == "FIELD"):
            if it.get("unit"):
                units[it["name"]] = it["unit"]
            if it.get("ref") in systems:
                frames[it["name"]] = systems[it["ref"]]
    for one in schema:
        said = {key.lower(): value for key, value in (one.metadata or {}).items()}
        unit = said.get(b"unit") or said.get(b"units")
        if unit:
            units[one.name] = unit.decode(errors="replace")
    return units, frames


def _frame(system: str | None, equinox: str | None) -> str:
    """Return the frame of a COOSYS: "eq_FK5 J2000"."""
    return " ".join(filter(None, (system, equinox)))


def _check_counts(about: pq.FileMetaData) -> None:
    """Check that the file says everywhere how many rows it has: nothing else protects that.

    Raises:
        ValueError: it does not.
    """
    flat = [j for j in range(about.num_columns) if not about.schema.column(j).max_repetition_level]
    groups = [about.row_group(index) for index in range(about.num_row_groups)]
    odd = any(group.column(j).num_values != group.num_rows for group in groups for j in flat)
    if odd or sum(group.num_rows for group in groups) != about.num_rows:
        raise ValueError("it says different numbers of rows")


def _read_text(text: str, wanted: Callable[[str], bool]) -> _Found:
    header = numbered_header(text)
    if header is not None:
        return _Found(read_numbered(text, header.names, wanted), header.names, header.units)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what is wrong is in the error
        table = read_described(text)
        if table is not None:
            return _of_table(table, wanted)
        layout = find_layout(text, wanted)
        found = _of_table(read_text(text, layout), wanted)
        found.units.update(layout.units)
        return found


def _read_fits(path: Path, wanted: Callable[[str], bool]) -> _Found:
    """Read the table that has the columns that are wanted.

    Raises:
        ValueError: there is none, or several have as many of them.
    """
    from astropy.io import fits
    from astropy.table import Table

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what is wrong is in the error
        tables: dict[int, tuple[str, int]] = {}
        with fits.open(path) as hdus:
            for index, hdu in enumerate(hdus):
                if isinstance(hdu, fits.BinTableHDU | fits.TableHDU) and hdu.name != _LDAC_HEADER:
                    n_wanted = sum(wanted(name) for name in hdu.columns.names)
                    tables[index] = (f"{index} '{hdu.name}'" if hdu.name else f"{index}", n_wanted)
            best, note = _choose(tables, path)
            nulls = _scaled_nulls(hdus[best], wanted)
            frame = _fits_frame(hdus[best].header)
        found = _of_table(Table.read(path, format="fits", hdu=best), wanted)
        for name, null_N in nulls.items():
            found.columns[name] = _blanked(found.columns[name], null_N)
        found.frames.update(dict.fromkeys(found.names, frame) if frame else {})
        found.notes.extend(note)
        return found


def _scaled_nulls(hdu: Any, wanted: Callable[[str], bool]) -> dict[str, NDArray[np.bool_]]:
    """Return where columns with TSCAL or TZERO are null, by name.

    TNULL is the integer in the file (FITS 4.0, section 7.3.2); astropy compares it with the
    number that is made of it.
    """
    nulls = {}
    for it in hdu.columns:
        is_scaled = it.bscale not in (None, "", 1) or it.bzero not in (None, "", 0)
        if is_scaled and isinstance(it.null, int) and wanted(it.name):
            raw_N = hdu.data.view(np.ndarray)[it.name]
            nulls[it.name] = raw_N == it.null
    return nulls


def _fits_frame(header: Any) -> str:
    """Return the frame of B1950 that a table's header states; "": none, or one of J2000."""
    system = str(header.get("RADESYS", header.get("RADECSYS", ""))).strip()
    equinox = header.get("EQUINOX", "")
    is_old = system.upper().startswith("FK4") or (not system and equinox in (1950, 1950.0))
    return _frame(system or "FK4", str(equinox)) if is_old else ""


def _choose(tables: dict[int, tuple[str, int]], path: Path) -> tuple[int, list[str]]:
    """Return the table that has most of the columns that are wanted, and a note on others.

    Args:
        tables: of each its name, and how many columns of it are wanted.

    Raises:
        ValueError: there is none, or several have as many.
    """
    if not tables:
        raise ValueError("it holds no table")
    most = max(n_wanted for _, n_wanted in tables.values())
    best, *equals = [index for index, (_, n_wanted) in tables.items() if n_wanted == most]
    if equals and most:
        names = ", ".join(tables[index][0] for index in (best, *equals))
        raise ValueError(
            f"which of its {1 + len(equals)} tables is meant? Join them, or give each a file: "
            f"{names}"
        )
    others = [name for index, (name, n) in tables.items() if n and index != best]
    if not others:
        return best, []
    return best, [f"table {tables[best][0]} of {path.name} was read, and not {', '.join(others)}"]


def _read_hdf5(path: Path, wanted: Callable[[str], bool]) -> _Found:
    import h5py
    from astropy.table import Table

    names: list[str] = []

    def note(name: str, it: Any) -> None:
        is_table = isinstance(it, h5py.Dataset) and it.dtype.names is not None
        if is_table and not name.endswith("__table_column_meta__"):
            names.append(name)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what is wrong is in the error
        with h5py.File(path) as file:
            file.visititems(note)
            counts = {
                i: (f"'{name}'", sum(map(wanted, file[name].dtype.names)))
                for i, name in enumerate(names)
            }
        if not names:
            raise ValueError("it holds no table of rows; write one with astropy, or as Parquet")
        best, notes = _choose(counts, path)
        found = _of_table(Table.read(path, format="hdf5", path=names[best]), wanted)
        found.notes.extend(notes)
        return found


def _read_votable(path: Path, wanted: Callable[[str], bool]) -> _Found:
    from astropy.io.votable import parse

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what is wrong is in the error
        file = parse(path)
        tables = list(file.iter_tables())
        counts = {
            index: (
                f"'{table.ID or table.name or index}'",
                sum(map(wanted, _called(table.fields, wanted).values())),
            )
            for index, table in enumerate(tables)
        }
        best, note = _choose(counts, path)
        called = _called(tables[best].fields, wanted)
        found = _of_table(tables[best].to_table(), lambda it: wanted(called[it]))
        systems = {it.ID: _frame(it.system, it.equinox) for it in file.iter_coosys()}
        return _Found(
            {called[known]: values for known, values in found.columns.items()},
            [called[known] for known in found.names],
            {called[known]: unit for known, unit in found.units.items()},
            {called[it.ID]: systems[it.ref] for it in tables[best].fields if it.ref in systems},
            note,
        )


def _called(fields: Any, wanted: Callable[[str], bool]) -> dict[str, str]:
    """Return what the columns of a VOTable are called, by ID.

    By name (NED's IDs are main_col1, ...), or by ID where only that is wanted.
    """
    names = {it.name.lower() for it in fields if it.name}
    return {
        it.ID: it.ID if not it.name or (wanted(it.ID) and it.ID.lower() not in names) else it.name
        for it in fields
    }


def _of_table(table: Any, wanted: Callable[[str], bool]) -> _Found:
    """Take the columns that are wanted from a table of astropy; a SkyCoord c gives c.ra, c.dec."""
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
    return _Found(filled, list(columns), units)


def _filled(column: object) -> NDArray:
    """Turn a table column into an array of native byte order, without what is masked."""
    values_N: Any = np.ma.asanyarray(column)
    array_N = np.asarray(values_N)
    array_N = array_N.astype(array_N.dtype.newbyteorder("="))
    return _blanked(array_N, np.ma.getmaskarray(values_N)) if np.ma.is_masked(values_N) else array_N


def _blanked(values_N: NDArray, mask_N: NDArray[np.bool_]) -> NDArray:
    """Return values that are NaN, or None of text, where the mask says that they are missing."""
    if not mask_N.any():
        return values_N
    is_number = values_N.dtype.kind in "iufb"
    blanked_N = values_N.astype(np.float64 if is_number else object)
    blanked_N[mask_N] = np.nan if is_number else None
    return blanked_N


def as_floats(values_N: NDArray) -> NDArray[np.float64]:
    """Return the numbers of a column, also those written as text; NaN for what says 'missing'.

    Raises:
        TypeError, ValueError: they are no numbers, such as dates, or 10:00:28.6 for degrees.
    """
    if values_N.dtype.kind not in "iufOSU":
        # NumPy makes numbers of dates, and real ones of complex ones.
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
    if value.strip().lower() in _TEXT_FOR_NOTHING:
        return np.nan
    if "_" in value or ":" in value:  # digits that Python groups; hours, minutes and seconds
        raise ValueError(f"{value!r}; angles are decimal degrees")
    if "," in value:
        raise ValueError(f"{value!r}; write a decimal point")
    return float(value)


def _as_mask(values_N: NDArray) -> NDArray[np.bool_]:
    """Read a column that says where another is masked; CSV has the words True and False."""
    if values_N.dtype.kind in "OSU":
        words = [str(value).strip().lower() for value in values_N]
        return np.array([word not in ("false", "0", "f") for word in words], bool)
    return values_N.astype(bool)
