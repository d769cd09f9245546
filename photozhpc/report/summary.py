"""What is said at the end of `photozhpc infer`: OUT/summary.json, OUT/zz.png and a few lines."""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from astropy.io.registry import IORegistryError
from astropy.table import Table
from numpy.typing import NDArray

from photozhpc.catalog.photoz_catalog import catalog_parts, read_catalog
from photozhpc.catalog.run import RunSummary
from photozhpc.disk import write_durably
from photozhpc.errors import SourceListError, did_you_mean
from photozhpc.metrics import PointMetrics, point_metrics
from photozhpc.report.zz import plot_zz
from photozhpc.store import CutoutStore

LABELS = "z_spec labels of the store (the model may have been trained on them)"


@dataclass(frozen=True)
class Truth:
    """Reference redshifts of galaxies, sorted by source_id."""

    source_id_N: NDArray[np.int64]
    z_ref_N: NDArray[np.float64]


def summarise(run: RunSummary, truth: Sequence[str | Path] | None = None) -> str:
    """Write OUT/summary.json and, where truth is known, OUT/zz.png; return the lines to show.

    Args:
        truth: tables with source_id and z_true (or z_spec); rows with is_star are left out.
            None: the labels in the store, if it has any.

    Raises:
        SourceListError: a truth table is missing, damaged, or lacks a column.
        CatalogError, StoreError: the catalogue or the store is damaged.
        RunError: the disk is full.
    """
    if truth:
        tables = f"{truth[0]}" + (f" and {len(truth) - 1} more" if len(truth) > 1 else "")
        known, reference = read_truth(truth), tables
    else:
        known, reference = store_labels(run.store_path), LABELS
    evaluation = evaluate(run.path, known) if len(known.source_id_N) else None
    document = _document(run)
    counts = run.counts
    lines = [
        f"rows       {counts.rows} ({counts.flagged} flagged, "
        f"{counts.without_photoz} of them without a redshift)"
    ]
    if run.n_rows_new:
        lines.append(
            f"speed      {run.sources_per_second:.0f} sources/s: {run.n_rows_new} in "
            f"{run.wall_seconds:.1f} s, of which {run.startup_seconds:.1f} s start-up"
        )
    else:
        lines.append("speed      nothing was left to do")
    lines.append(f"catalogue  {run.catalog_path}")
    if evaluation is not None and evaluation.metrics.n:
        metrics = evaluation.metrics
        figure = run.path / "zz.png"
        label = "true" if truth else "spectroscopic"
        plot_zz(evaluation.z_ref_N, evaluation.z_phot_N, metrics, figure, reference=label)
        document["metrics"] = {**dataclasses.asdict(metrics), "reference": reference}
        document["figure"] = str(figure)
        lines += [
            f"accuracy   bias {metrics.bias:+.4f}, NMAD {metrics.nmad:.4f}, outliers "
            f"{100 * metrics.outlier_fraction:.2f} %, of {metrics.n} sources with {reference}",
            f"figure     {figure}",
        ]
    write_durably(run.path / "summary.json", json.dumps(document, indent=2).encode())
    return "\n".join(lines)


@dataclass(frozen=True)
class Evaluation:
    """Pairs of the sources that have a truth; z_phot is NaN where there is none."""

    z_ref_N: NDArray[np.float64]
    z_phot_N: NDArray[np.float64]
    metrics: PointMetrics


def evaluate(catalog: str | Path, truth: Truth) -> Evaluation:
    """Compare a catalogue with the truth, part by part.

    Raises:
        CatalogError: the catalogue is missing or damaged.
    """
    ref_parts, phot_parts = [np.empty(0)], [np.empty(0)]
    for part in catalog_parts(catalog):
        table = read_catalog(part, columns=["source_id", "photoz"])
        id_N = table.column("source_id").to_numpy()
        at_N = np.searchsorted(truth.source_id_N, id_N)
        at_N[at_N == len(truth.source_id_N)] = 0
        known_N = truth.source_id_N[at_N] == id_N
        ref_parts.append(truth.z_ref_N[at_N[known_N]])
        phot_parts.append(table.column("photoz").to_numpy().astype(np.float64)[known_N])
    z_ref_N, z_phot_N = np.concatenate(ref_parts), np.concatenate(phot_parts)
    return Evaluation(z_ref_N, z_phot_N, point_metrics(z_ref_N, z_phot_N))


def read_truth(paths: Sequence[str | Path]) -> Truth:
    """Read truth tables: Parquet, FITS, ECSV or CSV.

    Raises:
        SourceListError: missing, damaged, or without source_id and z_true (or z_spec).
    """
    tables = [_read_one_truth(Path(path)) for path in paths]
    return _sorted_truth(
        np.concatenate([t.source_id_N for t in tables]),
        np.concatenate([t.z_ref_N for t in tables]),
    )


def store_labels(store_path: str | Path) -> Truth:
    """Return the spectroscopic redshifts in a store.

    Raises:
        StoreError: it is damaged.
    """
    store = CutoutStore.open(store_path)
    ids, labels = [np.empty(0, np.int64)], [np.empty(0)]
    for key in store.shards():
        sources = store.read_sources(key)
        labelled_N = np.isfinite(sources.z_spec_N)
        ids.append(sources.source_id_N[labelled_N])
        labels.append(sources.z_spec_N[labelled_N].astype(np.float64))
    return _sorted_truth(np.concatenate(ids), np.concatenate(labels))


def _document(run: RunSummary) -> dict[str, Any]:
    return {
        "rows": run.counts.rows,
        "flagged_rows": run.counts.flagged,
        "rows_without_photoz": run.counts.without_photoz,
        "new_rows": run.n_rows_new,
        "wall_seconds": round(run.wall_seconds, 3),
        "startup_seconds": round(run.startup_seconds, 3),
        "sources_per_second": round(run.sources_per_second, 2) if run.n_rows_new else None,
        "parts": run.n_parts,
        "parts_resumed": run.n_parts_resumed,
        "catalog": str(run.catalog_path),
        "store": str(run.store_path),
        "checkpoint": str(run.checkpoint_path),
        "survey": run.survey_name,
        "metrics": None,
        "figure": None,
    }


def _sorted_truth(source_id_N: NDArray[np.int64], z_ref_N: NDArray[np.float64]) -> Truth:
    order_N = np.argsort(source_id_N, kind="stable")
    return Truth(source_id_N[order_N], z_ref_N[order_N])


def _read_one_truth(path: Path) -> Truth:
    if not path.is_file():
        raise SourceListError(f"{path}: no such truth table")
    try:
        if path.suffix.lower() in (".parquet", ".pq"):
            parquet = pq.ParquetFile(path).read()
            columns = {
                name: parquet.column(name).to_numpy(zero_copy_only=False)
                for name in parquet.column_names
                if name in ("source_id", "z_true", "z_spec", "is_star")
            }
            names = parquet.column_names
        else:
            table = Table.read(path)
            names = table.colnames
            columns = {name: np.ma.filled(np.ma.asarray(table[name]), 0) for name in names}
    except (OSError, ValueError, TypeError, pa.ArrowException, IORegistryError) as error:
        line = " ".join(str(error).split())[:160]
        raise SourceListError(f"{path}: the truth table cannot be read ({line})") from error
    z_name = "z_true" if "z_true" in columns else "z_spec"
    for name in ("source_id", z_name):
        if name not in columns:
            wanted = "z_true" if name == z_name else name
            raise SourceListError(
                f"{path}: the truth table has no column '{wanted}'{did_you_mean(wanted, names)}"
            )
    kinds = {"source_id": "iu", z_name: "iuf", "is_star": "biuf"}
    for name, kind in kinds.items():
        if name in columns and (columns[name].ndim != 1 or columns[name].dtype.kind not in kind):
            raise SourceListError(
                f"{path}: column '{name}' of the truth table does not hold one "
                f"{'identifier' if name == 'source_id' else 'number'} a row ({columns[name].dtype})"
            )
    z_ref_N = columns[z_name].astype(np.float64)
    galaxy_N = np.isfinite(z_ref_N) & (z_ref_N > 0)
    if "is_star" in columns:
        galaxy_N &= ~columns["is_star"].astype(bool)
    return Truth(columns["source_id"].astype(np.int64)[galaxy_N], z_ref_N[galaxy_N])
