"""Describes any file or folder in about fifteen lines: `photozhpc info`."""

import math
from pathlib import Path
from typing import Any

from photozhpc.errors import PhotozError, first_few
from photozhpc.survey import Survey

_MAX_ITEMS = 12
_BY_NAME = ("columns", "planes", "roles", "njy_per_unit")  # their keys are names in the file


def about(path: str | Path, survey: Survey | None = None) -> dict[str, Any]:
    """Return facts about a file or folder; the key "kind" says what it is, see docs/guide.md.

    It reads only headers, and only a part of a large file.

    Args:
        survey: of a mosaic; None: the first bundled one that fits.

    Raises:
        PhotozError: it is missing, damaged, or of no kind that photozhpc reads.
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
        from photozhpc.info.configs import load_config

        loaded = load_config(path)
        return {"kind": f"config: {loaded.kind}", "path": str(path), "config": loaded.mapping()}
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
        note = "photozhpc import-hdf5 reads catalogues of pita-z"
        size = path.stat().st_size
        return {"kind": "HDF5 file", "path": str(path), "bytes": size, "note": note}
    if start.startswith(b"# %ECSV") or name.endswith((".csv", ".ecsv")):
        return about_text_table(path)
    raise PhotozError(
        f"{path}: is not a file that photozhpc reads: a store, checkpoint, mosaic (FITS, ASDF), "
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
        f"{path}: is a folder, but not a store, catalogue, training run or HATS catalogue; if it "
        f"holds mosaics, pass one file"
    )


def describe(facts: dict[str, Any]) -> str:
    """Return the facts of `about` as lines of text; long lists are cut short."""
    texts = {
        key.replace("_", " "): _text(key, value)
        for key, value in facts.items()
        if key not in ("kind", "path") and value not in (None, "", [], {})
    }
    width = max(map(len, texts), default=0)
    lines = (f"{label:<{width}}  {text}" for label, text in texts.items())
    return "\n".join([f"{facts['path']}: {facts['kind']}", *lines])


def _text(key: str, value: Any) -> str:
    if isinstance(value, bool):
        text = "yes" if value else "no"
    elif isinstance(value, float):
        text = f"{value:.8g}" if math.isfinite(value) else "unknown"
    elif key == "bytes" and isinstance(value, int):
        text = f"{value} ({_readable(value)})"
    elif isinstance(value, dict):
        items = [
            f"{k if key in _BY_NAME else str(k).replace('_', ' ')} {_text('', v)}"
            for k, v in value.items()
            if not str(k).endswith("sha256")  # a digest within a line helps nobody
        ]
        text = first_few(items, _MAX_ITEMS)
        if key == "columns":
            text = f"{len(value)}: {text}"
    elif isinstance(value, list | tuple):
        text = first_few([_text("", item) for item in value], _MAX_ITEMS)
    else:
        text = str(value)
    # Names and values of a damaged file may hold control characters, which a terminal would obey.
    return "".join(letter if letter.isprintable() else "?" for letter in text)[:600]


def _readable(n_bytes: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if n_bytes < 1000:
            return f"{n_bytes:.3g} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:.3g} TB"
