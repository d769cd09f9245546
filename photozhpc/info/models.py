"""Describes a store, a model file, and the folder of a training run."""

import hashlib
import json
import math
from pathlib import Path
from typing import Any

from photozhpc.errors import CheckpointError, one_line
from photozhpc.files.disk import read_fault, read_json
from photozhpc.store import CutoutStore

_MAX_HEADER_BYTES = 100_000_000  # the limit of safetensors
_MAX_TILES_COUNTED = 1000


def about_store(path: Path) -> dict[str, Any]:
    """Describe a store from its manifests and, for the labels, one small column per tile.

    Raises:
        StoreError: it is damaged.
    """
    import numpy as np

    store = CutoutStore.open(path)
    index, missing = store.index(), store.missing_tiles()
    n_bytes = 0
    for tile_id in index.tiles:
        manifest = read_json(path / ".manifests" / f"{tile_id}.json")
        n_bytes += sum(about["bytes"] for about in manifest["files"].values())
    labelled = None  # counting opens a file per tile: too many of a large store
    if len(index.tiles) <= _MAX_TILES_COUNTED:
        labelled = sum(
            int(np.count_nonzero(np.isfinite(store.read_sources(key).z_spec_N)))
            for key in index.shard_lengths()
        )
    lengths = list(index.shard_lengths().values())
    return {
        "kind": "store",
        "path": str(path),
        "state": "not finished" if missing else "finished",
        "survey": store.survey.name,
        "bands": list(store.survey.band_names),
        "tiles": len(index.tiles),
        "tiles_missing": len(missing),
        "sources": index.n_sources,
        "labelled": labelled,
        "cutout_size_pix": store.cutout_size,
        "pixel_scale_arcsec": store.survey.pixel_scale_arcsec,
        "aperture_radii_arcsec": list(store.survey.aperture_radii_arcsec),
        "shards": len(lengths),
        "shard_len": store.shard_len,
        "shortest_shard": min(lengths, default=None),
        "bytes": n_bytes,
        "fingerprint": index.fingerprint,
    }


def read_header(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the tensors (dtype, shape) and the metadata of a safetensors file, without weights.

    Raises:
        CheckpointError: it is damaged, or not a safetensors file.
    """
    try:
        size = path.stat().st_size
        with open(path, "rb") as stream:
            n_bytes = int.from_bytes(stream.read(8), "little")
            if not 2 <= n_bytes <= min(_MAX_HEADER_BYTES, size - 8):
                raise ValueError("the stated size of its header is impossible")
            header = json.loads(stream.read(n_bytes))
        tensors = {name: about for name, about in header.items() if name != "__metadata__"}
        end = max((about["data_offsets"][1] for about in tensors.values()), default=0)
        if 8 + n_bytes + end != size:
            raise ValueError(f"{size} bytes, where {8 + n_bytes + end} are expected")
        for about in tensors.values():
            math.prod(about["shape"])
        return tensors, dict(header.get("__metadata__", {}))
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        raise CheckpointError(
            read_fault(path, error)
            or f"{path}: not a safetensors file, or damaged ({one_line(error)}); get or train it "
            f"again"
        ) from error


def about_checkpoint(path: Path) -> dict[str, Any]:
    """Describe a model file from its header; only the SHA-256 needs the whole file.

    Raises:
        CheckpointError: it is damaged, or not a model of photozhpc.
    """
    tensors, metadata = read_header(path)
    if "photozhpc" not in metadata:
        raise CheckpointError(f"{path}: is a safetensors file, but not a model of photozhpc")
    try:
        header = json.loads(metadata["photozhpc"])
        model, survey, training = header["model"], header["survey"], header["training"]
        config = training.get("config") or {}
        epoch = training.get("last_epoch") or {}
        validation: dict[str, Any] = next(
            (
                training[key]
                for key in ("refit_validation", "validation", "cross_validation")
                if training.get(key)
            ),
            {},
        )
        expert = model.get("expert") or {}  # of method "photometry"
        with open(path, "rb") as stream:
            sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
        return {
            "kind": "checkpoint",
            "path": str(path),
            "model": header["kind"],
            "survey": survey["name"],
            "bands": [band["name"] for band in survey["bands"]],
            "pixel_scale_arcsec": survey["pixel_scale_arcsec"],
            "encoder": model.get("encoder"),
            "crop_pix": model.get("crop"),
            "redshift_heads": model.get(
                "redshift_heads", model.get("networks", expert.get("networks"))
            ),
            "density_bins": model.get("density_bins", expert.get("bins", 0)),
            "parameters": sum(math.prod(about["shape"]) for about in tensors.values()),
            "dtypes": sorted({about["dtype"] for about in tensors.values()}),
            "method": config.get("method"),
            "epochs": None if expert else epoch.get("epoch", config.get("epochs")),
            "validation": {key: validation[key] for key in ("nmad", "n") if key in validation},
            "trained_on_store_sha256": training.get("store_sha256"),
            "calibration": training.get("calibration"),
            "imported_from": training.get("imported_from"),
            "made_by": training.get("photozhpc"),
            "bytes": path.stat().st_size,
            "sha256": sha256,
        }
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(
            f"{path}: its header is damaged ({type(error).__name__}); get or train it again"
        ) from error


def about_training(path: Path) -> dict[str, Any]:
    """Describe the folder of a training run from its log and its model files."""
    lines = (path / "log.jsonl").read_bytes().splitlines()
    last: dict[str, Any] = {}
    for line in reversed(lines[-10:]):  # the last line may have been cut short
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(record, dict):
            last = record
            break
    files = [n for n in ("model", "best", "last") if (path / f"{n}.safetensors").is_file()]
    facts = {
        "kind": "training",
        "path": str(path),
        "state": "finished" if "model" in files else "not finished",
        "epochs": len(lines),
        "last_epoch": last,
        "model_files": [f"{name}.safetensors" for name in files],
        "can_be_resumed": (path / "state.pt").is_file(),
    }
    if files:
        try:
            model = about_checkpoint(path / f"{files[0]}.safetensors")
        except CheckpointError as error:
            return {**facts, "note": str(error)}
        names = ("model", "survey", "bands", "encoder", "crop_pix", "density_bins", "method")
        facts.update({name: model[name] for name in (*names, "validation", "sha256")})
    return facts
