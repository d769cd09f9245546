"""Latents of one or more models against the properties of their sources: figure and numbers."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from photozhpc.errors import SourceListError
from photozhpc.evaluation.truth import read_truth, truth_tables
from photozhpc.figures.latents import Latents, concentration, read_latents
from photozhpc.figures.latents_figure import LatentMap, plot_latents
from photozhpc.figures.latents_smoothness import N_NEIGHBOURS, embed, import_umap, smoothness
from photozhpc.files.disk import write_durably
from photozhpc.files.objects import AnyPath
from photozhpc.metrics import point_metrics
from photozhpc.sources.table_file import read_columns
from photozhpc.store import CutoutStore

_SIZE = "half_light_radius_arcsec"
_COLUMNS = ("source_id", "is_star", _SIZE)


def report_latents(
    checkpoints: Sequence[str | Path],
    store: str | Path,
    out: str | Path,
    truth: Sequence[str | AnyPath] = (),
    max_sources: int = 5000,
    seed: int = 0,
) -> str:
    """Write OUT/latents.png, .pdf and .json for one or more models; return the lines to show.

    Args:
        truth: tables, or globs of them, with source_id and z_true (or z_spec), and optionally
            is_star (rows to leave out) and half_light_radius_arcsec; empty: the store's labels.

    Raises:
        ConfigError: umap-learn is missing.
        CheckpointError, StoreError, SourceListError: the input is missing, damaged or does not
            fit; or too few sources have a redshift.
        RunError: the disk is full.
    """
    import_umap()  # raises if it is missing, before the slow reading
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    maps = [
        map_latents(name, read_latents(path, store, max_sources, seed), truth)
        for name, path in zip(_names(checkpoints), checkpoints, strict=True)
    ]
    plot_latents(maps, out / "latents.png")
    document = {
        "store": str(store),
        "store_sha256": CutoutStore.open(store).fingerprint(),
        "reference": [str(path) for path in truth] or "z_spec labels of the store",
        "seed": seed,
        "k": N_NEIGHBOURS,
        "models": [_record(model) for model in maps],
    }
    write_durably(out / "latents.json", json.dumps(document, indent=2).encode())
    lines = [
        f"{model.name}: neighbours' redshifts have NMAD {model.of_latents.nmad:.4f} in the "
        f"latents, {model.of_plane.nmad:.4f} in the UMAP plane, "
        f"{model.of_latents.nmad_shuffled:.4f} if shuffled; {model.of_latents.n} sources"
        for model in maps
    ]
    return "\n".join([*lines, f"figure: {out / 'latents.png'}, numbers: {out / 'latents.json'}"])


def map_latents(name: str, latents: Latents, truth: Sequence[str | AnyPath]) -> LatentMap:
    """Match latents with the truth, embed them by UMAP, and measure their smoothness.

    Sources that are stars in the truth are left out.

    Args:
        name: of the model, for titles.
        truth: as in `report_latents`.

    Raises:
        ConfigError: umap-learn is missing.
        SourceListError: a truth table cannot be read, or too few sources are in it.
    """
    size_N, size_label = np.empty(0), "half-light radius (arcsec)"
    if truth:
        truth_table = _read_truth(truth, latents.source_id_N)
        galaxy_N = ~truth_table["is_star"].to_numpy(bool)
        latents, truth_table = latents.take(galaxy_N), truth_table[galaxy_N]
        z_ref_N = truth_table["z_ref"].to_numpy(float)
        size_N = truth_table[_SIZE].to_numpy(float)
    else:
        z_ref_N = latents.z_spec_N.astype(float)
    if not np.isfinite(size_N).any():
        size_N, size_label = concentration(latents)
    n_redshifts = int(np.isfinite(z_ref_N).sum())
    if n_redshifts < 2 * N_NEIGHBOURS:
        raise SourceListError(
            f"only {n_redshifts} of {len(latents)} sources of {latents.store_path} have a redshift "
            f"in {truth[0] if truth else 'the store'}; pass --truth tables of that store's sources"
        )
    plane_N2 = embed(latents.latent_ND, latents.seed)
    return LatentMap(
        name,
        latents,
        plane_N2,
        z_ref_N,
        size_N,
        size_label,
        of_latents=smoothness(latents.latent_ND, z_ref_N, seed=latents.seed),
        of_plane=smoothness(plane_N2, z_ref_N, seed=latents.seed),
    )


def _read_truth(paths: Sequence[str | AnyPath], source_id_N: NDArray[np.int64]) -> pd.DataFrame:
    """Return z_ref, is_star and half_light_radius_arcsec of each source; NaN where unknown."""
    truth = read_truth(paths)
    table = pd.concat([_read_columns(path) for path in truth_tables(paths)])
    of_source = table.set_index("source_id").reindex(index=source_id_N, columns=["is_star", _SIZE])
    of_source["is_star"] = of_source["is_star"].eq(True)
    of_source["z_ref"] = pd.Series(truth.z_ref_N, truth.source_id_N).reindex(source_id_N)
    try:
        of_source[_SIZE] = of_source[_SIZE].astype(float)
    except (TypeError, ValueError) as error:
        raise SourceListError(
            f"{paths[0]}: column '{_SIZE}' does not contain numbers; correct or remove it"
        ) from error
    return of_source


def _read_columns(path: AnyPath) -> pd.DataFrame:
    """Read the columns _COLUMNS of a table that `read_truth` has read."""
    if path.is_dir():  # a store has neither sizes nor stars
        return pd.DataFrame({"source_id": np.empty(0, np.int64)})
    return pd.DataFrame(read_columns(path, "truth table", _COLUMNS.__contains__).columns)


def _names(checkpoints: Sequence[str | Path]) -> list[str]:
    """Name models by their files, with the folder if several files have one name."""
    paths = [Path(path) for path in checkpoints]
    if len({path.stem for path in paths}) == len(paths):
        return [path.stem for path in paths]
    return [f"{path.resolve().parent.name}/{path.stem}" for path in paths]


def _record(model: LatentMap) -> dict[str, Any]:
    return {
        "name": model.name,
        "checkpoint": str(model.latents.checkpoint_path),
        "checkpoint_sha256": model.latents.checkpoint_sha256,
        "n": len(model.latents),
        "n_dimensions": model.latents.latent_ND.shape[1],
        "size": model.size_label,
        "smoothness_of_latents": asdict(model.of_latents),
        "smoothness_of_umap_plane": asdict(model.of_plane),
        "z_phot": asdict(point_metrics(model.z_ref_N, model.latents.z_phot_N)),
    }
