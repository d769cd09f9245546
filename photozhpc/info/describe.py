"""What any file or folder is, in some fifteen lines: `photozhpc info`."""

import math
from pathlib import Path
from typing import Any

from photozhpc.errors import PhotozError, first_few
from photozhpc.survey import Survey

_MAX_ITEMS = 12
_BY_NAME = ("columns", "planes", "roles", "njy_per_unit")  # keyed by names of the file itself


def about(path: str | Path, survey: Survey | None = None) -> dict[str, Any]:
    """Return what a file or folder is; the key "kind" says of which kind, see docs/guide.md.

    Headers alone are read, and of a large file a part.

    Args:
        survey: of a mosaic; None: the one that comes with the package and fits.

    Raises:
        PhotozError: it is missing, damaged, or nothing that photozhpc knows.
    """
    path = Path(path)
    if path.is_dir():
        return _about_folder(path)
    if not path.is_file():
        raise PhotozError(f"{path}: no such file or folder")
    try:
        with open(path, "rb") as stream:
            start = stream.read(4096)
    except OSError as error:
        raise PhotozError(f"{path}: cannot be read ({error.strerror})") from error
    if not start:
        raise PhotozError(f"{path}: is empty; copy or make it again")
    name = path.name.lower()
    if name.endswith((".yaml", ".yml")):
        return _about_config(path)
    if start.startswith((b"#ASDF", b"SIMPLE", b"\x1f\x8b")):
        from photozhpc.info.mosaics import about_fits_or_asdf

        return about_fits_or_asdf(path, survey)
    if name.endswith(".safetensors") or start[8:10] == b'{"':
        from photozhpc.info.models import about_checkpoint

        return about_checkpoint(path)
    from photozhpc.info.tables import about_parquet, about_text_table

    if start.startswith(b"PAR1"):
        return about_parquet(path)
    if start.startswith(b"\x89HDF"):
        return {"kind": "HDF5 file", "path": str(path), "bytes": path.stat().st_size,
                "note": "photozhpc import-hdf5 takes catalogues of pita-z"}  # fmt: skip
    if start.startswith(b"# %ECSV") or name.endswith((".csv", ".ecsv")):
        return about_text_table(path)
    raise PhotozError(
        f"{path}: is none of photozhpc's files: a store, checkpoint, mosaic (FITS, ASDF), "
        f"catalogue, table (Parquet, FITS, ECSV, CSV) or YAML file"
    )


def _about_folder(path: Path) -> dict[str, Any]:
    from photozhpc.info.tables import about_catalog, about_hats, hats_file

    if (path / "zarr.json").is_file():
        from photozhpc.info.models import about_store

        return about_store(path)
    has_parts = any(path.glob("part-*.parquet")) or any(path.glob("catalog/part-*.parquet"))
    if (path / "run.json").is_file() or has_parts:
        return about_catalog(path)
    if (path / "log.jsonl").is_file():
        from photozhpc.info.models import about_training

        return about_training(path)
    if hats_file(path) is not None:
        return about_hats(path)
    raise PhotozError(
        f"{path}: is a folder, but no store, catalogue, training run or HATS catalogue; of a "
        f"folder of mosaics, name one file"
    )


def _about_config(path: Path) -> dict[str, Any]:
    from photozhpc.info.configs import load_config

    found = load_config(path)
    return {"kind": f"config: {found.kind}", "path": str(path), "config": found.mapping()}


def describe(found: dict[str, Any]) -> str:
    """Return what `about` found as lines of text; long lists are cut short."""
    facts = {
        key.replace("_", " "): _shown(key, value)
        for key, value in found.items()
        if key not in ("kind", "path") and value not in (None, "", [], {})
    }
    width = max(map(len, facts), default=0)
    lines = (f"{label:<{width}}  {text}" for label, text in facts.items())
    return "\n".join([f"{found['path']}: {found['kind']}", *lines])


def _shown(key: str, value: Any) -> str:
    if isinstance(value, bool):
        text = "yes" if value else "no"
    elif isinstance(value, float):
        text = f"{value:.8g}" if math.isfinite(value) else "unknown"
    elif key == "bytes" and isinstance(value, int):
        text = f"{value} ({_readable(value)})"
    elif isinstance(value, dict):
        # A digest in the middle of a line is no use to anybody.
        known = {k: v for k, v in value.items() if not str(k).endswith("sha256")}
        items = [
            f"{k if key in _BY_NAME else str(k).replace('_', ' ')} {_shown('', v)}"
            for k, v in known.items()
        ]
        text = (
            f"{len(value)}: {first_few(items, _MAX_ITEMS)}"
            if key == "columns"
            else first_few(items, _MAX_ITEMS)
        )
    elif isinstance(value, list | tuple):
        text = first_few([_shown("", item) for item in value], _MAX_ITEMS)
    else:
        text = str(value)
    # Names and values from files that may be damaged: nothing that a terminal would obey.
    return "".join(letter if letter.isprintable() else "?" for letter in text)[:600]


def _readable(n_bytes: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if n_bytes < 1000:
            return f"{n_bytes:.3g} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:.3g} TB"
