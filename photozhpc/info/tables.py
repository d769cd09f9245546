"""What a catalogue, a source list or any other table says of itself: headers, no rows."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from photozhpc.catalog.notes import read_run, run_folder_of
from photozhpc.catalog.part_file import PROVENANCE_KEY
from photozhpc.catalog.photoz_catalog import catalog_parts
from photozhpc.errors import CatalogError, SourceListError, one_line
from photozhpc.files.disk import read_fault

HATS_FILES = ("hats.properties", "properties", "collection.properties")
# Of text, rows are counted up to here; of more, they are estimated.
_MAX_COUNTED_BYTES = 64 << 20
_MAX_PROPERTIES_BYTES = 1 << 20


def about_catalog(path: Path) -> dict[str, Any]:
    """Describe the --out folder of `infer`, or its catalog/ folder, from one part and run.json.

    Raises:
        CatalogError: it is damaged, or holds no part.
    """
    parts = catalog_parts(path, incomplete_ok=True)
    out = run_folder_of(path)
    found = {"kind": "catalogue", **_parquet(parts[0]), "path": str(path)}
    found["parts"] = len(parts)
    found["rows"] = None
    found["bytes"] = sum(part.stat().st_size for part in parts)
    if out is None:
        return {**found, "state": "unknown: there is no run.json"}
    run = read_run(out)
    finished = len(parts) >= run.n_parts
    found["rows"] = run.n_rows if finished else None
    found["state"] = (
        "finished" if finished else f"not finished: {len(parts)} of {run.n_parts} parts"
    )
    found["rows_due"] = run.n_rows
    found["survey"], found["command"] = run.about.get("survey"), run.about.get("command")
    found["made_by"] = run.about.get("photozhpc")
    found["store"], found["checkpoint"] = run.about.get("store"), run.about.get("checkpoint")
    found["checkpoint_sha256"] = run.identity.get("checkpoint_sha256")
    return found


def about_parquet(path: Path) -> dict[str, Any]:
    """Describe a Parquet file from its footer: a part of a catalogue, or any table.

    Raises:
        SourceListError: it is damaged.
    """
    found = _parquet(path)
    kind = "part of a catalogue" if "schema_version" in found else "table (Parquet)"
    return {"kind": kind, **found}


def _parquet(path: Path) -> dict[str, Any]:
    try:
        with pq.ParquetFile(path) as file:
            schema, n_rows = file.schema_arrow, file.metadata.num_rows
            groups = file.metadata.num_row_groups
    except (OSError, ValueError, pa.ArrowException) as error:
        line = one_line(error)
        raise SourceListError(
            read_fault(path, error) or f"{path}: not a Parquet file, or damaged ({line})"
        ) from error
    metadata = schema.metadata or {}
    found: dict[str, Any] = {
        "path": str(path),
        "rows": n_rows,
        "columns": {field.name: _unit_of(field) for field in schema},
        "row_groups": groups,
        "bytes": path.stat().st_size,
    }
    if b"photozhpc.schema_version" in metadata:
        found["schema_version"] = _text(metadata[b"photozhpc.schema_version"])
    try:
        about = json.loads(metadata.get(PROVENANCE_KEY, b"{}"))
        for key in ("survey", "command", "checkpoint", "store"):
            if about.get(key):
                found[key] = about[key]
    except (ValueError, AttributeError, RecursionError):
        found["note"] = "its provenance cannot be read"
    return found


def _unit_of(field: pa.Field) -> str:
    unit = (field.metadata or {}).get(b"unit", b"")
    return _text(unit) or str(field.type)


def _text(value: bytes) -> str:
    return value.decode("utf-8", errors="replace")


def hats_file(path: Path) -> Path | None:
    """Return the properties of a HATS catalogue or collection, if the folder is one."""
    return next((path / name for name in HATS_FILES if (path / name).is_file()), None)


def about_hats(path: Path) -> dict[str, Any]:
    """Describe a HATS catalogue (or collection) from its properties and the schema beside them.

    Raises:
        CatalogError: the properties are damaged.
    """
    file = hats_file(path)
    assert file is not None
    with open(file, encoding="utf-8", errors="replace") as stream:
        text = stream.read(_MAX_PROPERTIES_BYTES)
    pairs = [line.partition("=") for line in text.splitlines() if not line.startswith("#")]
    known = {key.strip(): value.strip() for key, equals, value in pairs if equals}
    collection = file.name == "collection.properties"
    name = known.get("obs_collection") or known.get("name")
    if not name:
        raise CatalogError(f"{file}: is no file of HATS properties: it has no obs_collection")
    rows = known.get("hats_nrows", "")
    found: dict[str, Any] = {
        "kind": "HATS collection" if collection else "HATS catalogue",
        "path": str(path),
        "name": name,
    }
    if collection:
        found["primary_table"] = known.get("hats_primary_table_url")
        found["margins"] = known.get("all_margins")
        found["indexes"] = known.get("all_indexes")
        return found
    found |= {
        "type": known.get("dataproduct_type"),
        "rows": int(rows) if rows.isdigit() else None,
        "position_columns": [known.get("hats_col_ra"), known.get("hats_col_dec")],
        "hats_order": known.get("hats_order"),
        "hats_version": known.get("hats_version"),
        "made_by": known.get("hats_builder"),
    }
    schema = next(
        (f for n in ("_common_metadata", "_metadata") if (f := path / "dataset" / n).is_file()),
        None,
    )
    if schema is not None:
        columns = _parquet(schema)["columns"]
        found["columns"] = columns
    return found


def about_text_table(path: Path) -> dict[str, Any]:
    """Describe a CSV or ECSV file from its first lines; long ones are not read to the end.

    Raises:
        SourceListError: its first line is no list of columns.
    """
    size = path.stat().st_size
    units: dict[str, str] = {}
    with open(path, "rb") as stream:
        head = stream.read(1 << 20)
        lines = head.decode("utf-8", errors="replace").splitlines()
        comments = [line for line in lines if line.startswith("#")]
        rest = [line for line in lines if line.strip() and not line.startswith("#")]
        is_ecsv = bool(comments) and comments[0].startswith("# %ECSV")
        if not rest or ("," not in rest[0] and not is_ecsv):
            raise SourceListError(f"{path}: is no table: its first line has no commas")
        separator = "," if "," in rest[0] else None
        columns = [name.strip().strip('"') for name in rest[0].split(separator)]
        if is_ecsv:
            units = _ecsv_units(comments)
        if size <= _MAX_COUNTED_BYTES:
            stream.seek(0)
            n_rows = sum(1 for line in stream if line.strip() and not line.startswith(b"#")) - 1
            exact = True
        else:
            n_bytes = sum(len(line) + 1 for line in rest[1:-1])
            n_rows = round(size / (n_bytes / max(len(rest) - 2, 1)))
            exact = False
    return {
        "kind": "table (ECSV)" if is_ecsv else "table (CSV)",
        "path": str(path),
        "rows": n_rows,
        "rows_are_exact": exact,
        "columns": {name: units.get(name, "") for name in columns},
        "bytes": size,
    }


def _ecsv_units(comments: list[str]) -> dict[str, str]:
    import yaml

    try:
        about = yaml.safe_load("\n".join(line[2:] for line in comments if line[:3] != "# %"))
        columns = about["datatype"]
        return {c["name"]: str(c.get("unit") or c.get("datatype", "")) for c in columns}
    except (yaml.YAMLError, KeyError, TypeError, AttributeError):
        return {}
