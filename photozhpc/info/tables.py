"""Describes a catalogue, a source list or any other table from its headers, without rows."""

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
_MAX_COUNTED_BYTES = 64 << 20  # of text; the rows of a longer file are estimated
_MAX_PROPERTIES_BYTES = 1 << 20


def about_catalog(path: Path) -> dict[str, Any]:
    """Describe the --out folder of `infer`, or its catalog/ folder, from one part and run.json.

    Raises:
        CatalogError: it is damaged, or holds no part.
    """
    parts = catalog_parts(path, incomplete_ok=True)
    out = run_folder_of(path)
    facts = {
        "kind": "catalogue",
        **_parquet(parts[0]),
        "path": str(path),
        "parts": len(parts),
        "rows": None,
        "bytes": sum(part.stat().st_size for part in parts),
    }
    if out is None:
        return {**facts, "state": "unknown: there is no run.json"}
    run = read_run(out)
    finished = len(parts) >= run.n_parts
    return facts | {
        "rows": run.n_rows if finished else None,
        "state": "finished" if finished else f"not finished: {len(parts)} of {run.n_parts} parts",
        "rows_due": run.n_rows,
        "survey": run.about.get("survey"),
        "command": run.about.get("command"),
        "made_by": run.about.get("photozhpc"),
        "store": run.about.get("store"),
        "checkpoint": run.about.get("checkpoint"),
        "checkpoint_sha256": run.identity.get("checkpoint_sha256"),
    }


def about_parquet(path: Path) -> dict[str, Any]:
    """Describe a Parquet file from its footer: a part of a catalogue, or any table.

    Raises:
        SourceListError: it is damaged.
    """
    facts = _parquet(path)
    kind = "part of a catalogue" if "schema_version" in facts else "table (Parquet)"
    return {"kind": kind, **facts}


def _parquet(path: Path) -> dict[str, Any]:
    try:
        with pq.ParquetFile(path) as file:
            schema, n_rows = file.schema_arrow, file.metadata.num_rows
            groups = file.metadata.num_row_groups
    except (OSError, ValueError, pa.ArrowException) as error:
        raise SourceListError(
            read_fault(path, error)
            or f"{path}: not a Parquet file, or damaged ({one_line(error)}); copy it again"
        ) from error
    metadata = schema.metadata or {}
    facts: dict[str, Any] = {
        "path": str(path),
        "rows": n_rows,
        "columns": {field.name: _unit_of(field) for field in schema},
        "row_groups": groups,
        "bytes": path.stat().st_size,
    }
    if b"photozhpc.schema_version" in metadata:
        facts["schema_version"] = metadata[b"photozhpc.schema_version"].decode(errors="replace")
    try:
        provenance = json.loads(metadata.get(PROVENANCE_KEY, b"{}"))
        for key in ("survey", "command", "checkpoint", "store"):
            if provenance.get(key):
                facts[key] = provenance[key]
    except (ValueError, AttributeError, RecursionError):
        facts["note"] = "its provenance cannot be read"
    return facts


def _unit_of(field: pa.Field) -> str:
    unit: bytes = (field.metadata or {}).get(b"unit", b"")
    return unit.decode(errors="replace") or str(field.type)


def hats_file(path: Path) -> Path | None:
    """Return the properties file of a HATS catalogue or collection; None if there is none."""
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
    properties = {key.strip(): value.strip() for key, equals, value in pairs if equals}
    name = properties.get("obs_collection") or properties.get("name")
    if not name:
        raise CatalogError(f"{file}: has no obs_collection, so it is not a HATS properties file")
    if file.name == "collection.properties":
        return {
            "kind": "HATS collection",
            "path": str(path),
            "name": name,
            "primary_table": properties.get("hats_primary_table_url"),
            "margins": properties.get("all_margins"),
            "indexes": properties.get("all_indexes"),
        }
    rows = properties.get("hats_nrows", "")
    facts: dict[str, Any] = {
        "kind": "HATS catalogue",
        "path": str(path),
        "name": name,
        "type": properties.get("dataproduct_type"),
        "rows": int(rows) if rows.isdigit() else None,
        "position_columns": [properties.get("hats_col_ra"), properties.get("hats_col_dec")],
        "hats_order": properties.get("hats_order"),
        "hats_version": properties.get("hats_version"),
        "made_by": properties.get("hats_builder"),
    }
    for schema in ("_common_metadata", "_metadata"):
        if (path / "dataset" / schema).is_file():
            return facts | {"columns": _parquet(path / "dataset" / schema)["columns"]}
    return facts


def about_text_table(path: Path) -> dict[str, Any]:
    """Describe a CSV or ECSV file from its first lines; a long file is not read to the end.

    Raises:
        SourceListError: its first line is not a list of columns.
    """
    size = path.stat().st_size
    with open(path, "rb") as stream:
        head = stream.read(1 << 20)
        lines = head.decode("utf-8", errors="replace").splitlines()
        comments = [line for line in lines if line.startswith("#")]
        rest = [line for line in lines if line.strip() and not line.startswith("#")]
        is_ecsv = bool(comments) and comments[0].startswith("# %ECSV")
        if not rest or ("," not in rest[0] and not is_ecsv):
            raise SourceListError(f"{path}: is not a table: its first line has no commas")
        separator = "," if "," in rest[0] else None
        columns = [name.strip().strip('"') for name in rest[0].split(separator)]
        units = _ecsv_units(comments) if is_ecsv else {}
        if size <= _MAX_COUNTED_BYTES:
            stream.seek(0)
            n_rows = sum(1 for line in stream if line.strip() and not line.startswith(b"#")) - 1
        else:
            n_bytes = sum(len(line) + 1 for line in rest[1:-1])
            n_rows = round(size / (n_bytes / max(len(rest) - 2, 1)))
    return {
        "kind": "table (ECSV)" if is_ecsv else "table (CSV)",
        "path": str(path),
        "rows": n_rows,
        "rows_are_exact": size <= _MAX_COUNTED_BYTES,
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
