"""The end of `photozhpc infer`: summary.json, footprint.moc.fits, zz.png and a few lines."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from photozhpc.catalog.doubts import doubts
from photozhpc.catalog.footprint import FOOTPRINT_NAME, write_footprint
from photozhpc.catalog.notes import PDF_FOLDER
from photozhpc.catalog.photoz_catalog import catalog_parts, read_catalog
from photozhpc.catalog.run import RunSummary
from photozhpc.evaluation.catalog_columns import floats
from photozhpc.evaluation.match import match
from photozhpc.evaluation.truth import read_truth, store_labels, tables_text
from photozhpc.files.disk import write_durably
from photozhpc.files.objects import AnyPath
from photozhpc.metrics import point_metrics

DOUBTED_PARTS = 16  # of a catalogue, whose redshifts are looked at
LABELS = "z_spec labels of the store (the model may have been trained on them)"


def summarise(run: RunSummary, truth: Sequence[str | AnyPath] | None = None) -> str:
    """Write OUT/summary.json, OUT/footprint.moc.fits and, where truth is known, OUT/zz.png.

    Args:
        truth: tables with source_id and z_true (or z_spec); rows with is_star are left out.
            None: the labels in the store, if it has any.

    Returns:
        The lines to show.

    Raises:
        SourceListError: a truth table is missing, damaged, lacks a column, or lists a source twice.
        CatalogError, StoreError: the catalogue or the store is damaged.
        RunError: the disk is full.
    """
    columns = None if run.survey is None else run.survey.source_columns
    if truth:
        redshifts, reference = read_truth(truth, columns), tables_text(truth)
    else:
        redshifts, reference = store_labels(run.store_path, run.survey), LABELS
    matched = match(run.path, redshifts).matched if len(redshifts.source_id_N) else None
    document = _document(run) | {"notes": list(redshifts.notes)}
    counts = run.counts
    lines = [
        f"rows       {counts.rows} ({counts.flagged} flagged, "
        f"{counts.without_photoz} of them without a redshift)"
    ]
    if counts.sharp_defects or counts.other_noise:
        lines.append(
            f"images     {counts.sharp_defects} with a cosmic ray or another sharp defect, "
            f"{counts.other_noise} with noise unlike that of all training"
        )
    if run.n_rows_new:
        lines.append(
            f"speed      {run.sources_per_second:.0f} sources/s: {run.n_rows_new} in "
            f"{run.wall_seconds:.1f} s, of which {run.startup_seconds:.1f} s start-up"
        )
    else:
        lines.append("speed      nothing was left to do")
    lines.append(f"catalogue  {run.catalog_path}")
    footprint = run.path / FOOTPRINT_NAME
    if write_footprint(catalog_parts(run.path), footprint):
        document["footprint"] = str(footprint)
        lines.append(f"footprint  {footprint}")
    if run.pdf_form is not None:
        lines.append(f"p(z)       {run.path / PDF_FOLDER} ({run.pdf_form})")
    if matched and (metrics := point_metrics(matched.z_ref_N, matched.z_phot_N)).n:
        from photozhpc.evaluation.figure_style import save_figure  # Matplotlib takes a second
        from photozhpc.evaluation.zz import plot_zz, point_text

        path = run.path / "zz.png"
        figure = plot_zz(matched.z_ref_N, matched.z_phot_N, metrics, reference=redshifts.z_kind)
        save_figure(figure, path)
        document["metrics"] = {**asdict(metrics), "reference": reference}
        document["figure"] = str(path)
        lines += [
            f"accuracy   {point_text(metrics.bias, metrics.nmad, metrics.outlier_fraction)}, of "
            f"{metrics.n} sources with {reference}",
            f"figure     {path}",
        ]
    parts = catalog_parts(run.path)
    some = parts[:: -(-len(parts) // DOUBTED_PARTS)]
    photoz_N = np.concatenate([floats(read_catalog(part, ["photoz"]), "photoz") for part in some])
    document["warnings"] = [*run.warnings, *doubts(counts.rows, counts.flagged, photoz_N)]
    lines += [f"warning: {warning}" for warning in document["warnings"]]
    lines += [f"note: {note}" for note in redshifts.notes]
    write_durably(run.path / "summary.json", json.dumps(document, indent=2).encode())
    return "\n".join(lines)


def _document(run: RunSummary) -> dict[str, Any]:
    return {
        "rows": run.counts.rows,
        "flagged_rows": run.counts.flagged,
        "rows_without_photoz": run.counts.without_photoz,
        "rows_with_sharp_defect": run.counts.sharp_defects,
        "rows_with_other_noise": run.counts.other_noise,
        "new_rows": run.n_rows_new,
        "wall_seconds": round(run.wall_seconds, 3),
        "startup_seconds": round(run.startup_seconds, 3),
        "sources_per_second": round(run.sources_per_second, 2) if run.n_rows_new else None,
        "parts": run.n_parts,
        "parts_resumed": run.n_parts_resumed,
        "catalog": str(run.catalog_path),
        "footprint": None,
        "pdf": None if run.pdf_form is None else str(run.path / PDF_FOLDER),
        "pdf_form": run.pdf_form,
        "store": str(run.store_path),
        "checkpoint": str(run.checkpoint_path),
        "survey": run.survey_name,
        "metrics": None,
        "figure": None,
    }
