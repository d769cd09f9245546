"""The part of a page that compares a catalogue with the truth, if there is any."""

import glob
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from photozhpc.errors import PhotozError
from photozhpc.evaluation.evaluate import Evaluation, evaluate
from photozhpc.evaluation.figures import figures_of
from photozhpc.evaluation.summary import LABELS
from photozhpc.evaluation.tables import JSON_NAME, default_folder
from photozhpc.evaluation.truth import store_labels, tables_text, truth_tables
from photozhpc.evaluation.zz import point_text
from photozhpc.files.disk import read_json
from photozhpc.files.objects import AnyPath, location
from photozhpc.html_report.page_source import PageSource
from photozhpc.html_report.plot import Plot, with_minus
from photozhpc.store import CutoutStore

_MAX_ROWS_FOR_LABELS = 10_000_000
_GROUPS = ("overall", "magnitude", "redshift", "flags", "ood")


@dataclass(frozen=True)
class Accuracy:
    """The comparison with the truth.

    Attributes:
        evaluation: None if there is no truth; `note` then says why.
        reference: the truth that the catalogue was compared with.
        note: remarks for the reader.
        plots, rows: figures; rows of the table, one per group of sources.
    """

    evaluation: Evaluation | None = None
    reference: str = ""
    note: str = ""
    plots: list[Plot] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)


def compare(source: PageSource, truth: Sequence[str | AnyPath], n_rows: int) -> Accuracy:
    """Compare with `truth` or, if empty, with that of the run's evaluation, sky or store.

    Raises:
        PhotozError: `truth` is faulty, or of other sources.
    """
    if truth:
        evaluation = evaluate(source.path, truth, incomplete_ok=True)
        return _accuracy(evaluation, tables_text(evaluation.truth), "")
    reasons = []
    for paths, reference, note in _known_truths(source, n_rows):
        try:
            evaluation = evaluate(source.path, paths, incomplete_ok=True)
        except PhotozError as error:
            reasons.append(str(error))
            continue
        return _accuracy(evaluation, reference or tables_text(evaluation.truth), note)
    if reasons:
        return Accuracy(note=f"No comparison with known redshifts was possible: {reasons[0]}")
    return Accuracy(note="There are no known redshifts. Pass --truth FILE to compare with some.")


def _known_truths(source: PageSource, n_rows: int) -> list[tuple[list[AnyPath], str, str]]:
    """Return (tables, their name, a warning), in the order in which to try them."""
    truths: list[tuple[list[AnyPath], str, str]] = []
    try:
        paths = read_json(default_folder(source.path) / JSON_NAME).get("truth")
    except (OSError, ValueError):
        paths = None
    if isinstance(paths, list) and paths and all(isinstance(path, str) for path in paths):
        truths.append(([location(path) for path in paths], "", ""))
    own_sky = truth_tables([glob.escape(str(source.folder)) + "/sky/*_truth.parquet"])
    if own_sky[0].is_file():
        truths.append((own_sky, "", ""))
    if source.store is not None and n_rows <= _MAX_ROWS_FOR_LABELS and _has_labels(source.store):
        note = f"The known redshifts are {LABELS}."
        truths.append(([source.store.path], "the labels of the store", note))
    return truths


def _has_labels(store: CutoutStore) -> bool:
    try:
        return len(store_labels(store.path).source_id_N) > 0
    except PhotozError:
        return True  # the comparison will report the error


def _accuracy(evaluation: Evaluation, reference: str, note: str) -> Accuracy:
    note = " ".join(filter(None, (note, *(f"Note: {text}." for text in evaluation.truth_notes))))
    return Accuracy(evaluation, reference, note, _plots(evaluation), _rows(evaluation))


def _rows(evaluation: Evaluation) -> list[dict[str, Any]]:
    """Return the rows of the table of metrics, as text."""
    titles = {
        "overall": "",
        "magnitude": f"{(evaluation.band or '').upper()} ",
        "redshift": f"{evaluation.z_kind} ",
        "flags": "",
        "ood": "",
    }
    rows = []
    for kind in _GROUPS:
        for group in evaluation.groups.get(kind, []):
            cells = [f"{group.n:,}"]
            for name, sign, digits, scale in (
                ("bias", "+", 4, 1),
                ("nmad", "", 4, 1),
                ("outlier_fraction", "", 1, 100),
                ("coverage68", "", 1, 100),
                ("coverage90", "", 1, 100),
                ("crps", "", 4, 1),
            ):
                cells.append(_cell(group.statistics.get(name), sign, digits, scale))
            label = group.label
            if titles[kind].strip().lower() not in label.lower():
                label = titles[kind] + label
            rows.append({"order": _GROUPS.index(kind), "label": label, "cells": cells})
    return rows


def _cell(estimate: Any, sign: str, digits: int, scale: float) -> str:
    """Return a number with its error, with one more digit if the error would round to 0."""
    if estimate is None or not np.isfinite(estimate.value):
        return "–"
    value, error = scale * estimate.value, scale * estimate.error
    if 0 < error < 0.5 * 10.0**-digits:
        digits += 1
    text = with_minus(f"{value:{sign}.{digits}f}")
    return f"{text} ± {error:.{digits}f}" if np.isfinite(error) else text


def _plots(evaluation: Evaluation) -> list[Plot]:
    overall = evaluation.groups["overall"][0]
    statistics = overall.statistics
    point = point_text(*(statistics[name].value for name in ("bias", "nmad", "outlier_fraction")))
    words = {
        "zz": (
            f"Photometric against {evaluation.z_kind} redshift",
            "Solid: 1:1; dashed: |dz| = 0.15, dz = (z_ref − z_phot) / (1 + z_ref). Sources beyond "
            "the axes are drawn at their edge.",
            f"Photometric against {evaluation.z_kind} redshift of {overall.n:,} sources, about "
            f"the 1:1 line: {point}.",
        ),
        "metrics": (
            "Metrics in bins",
            "Horizontal bars: the bin; vertical: the bootstrap standard error. CRPS: of the "
            "intervals, and of a single Gaussian about photoz for all sources.",
            "Bias, NMAD, outliers and CRPS in bins; the numbers are in the table. "
            + _range_text(evaluation, "magnitude"),
        ),
    }
    if evaluation.has_intervals:
        coverage = ", ".join(
            f"{100 * statistics[f'coverage{percent}'].value:.1f} % in the {percent} % interval"
            for percent in (68, 90, 99)
        )
        words["pit"] = (
            "Are the intervals right? The PIT",
            "Above: its histogram; below: its cumulative distribution minus the uniform one. Grey: "
            "the range of 95 % of catalogues with perfect PDFs, bin by bin.",
            f"Histogram of the PIT of {overall.n_intervals:,} sources: its cumulative distribution "
            f"differs by at most {statistics['pit_ks'].value:.3f} from the uniform one.",
        )
        words["coverage"] = (
            "Are the intervals right? Coverage",
            "Fraction of sources whose known redshift is in the interval, in bins of magnitude; "
            "dashed: the nominal fraction.",
            f"Coverage in bins of magnitude; over all sources {coverage}.",
        )
    figures = figures_of(evaluation)
    order = ("zz", "pit", "metrics", "coverage")
    return [Plot(figures[name], *words[name]) for name in order if name in figures]


def _range_text(evaluation: Evaluation, kind: str) -> str:
    groups = evaluation.groups.get(kind) or []
    if not groups:
        return ""
    first, last = groups[0], groups[-1]
    return (
        f"NMAD goes from {first.statistics['nmad'].value:.3f} in the brightest bin "
        f"({first.label}) to {last.statistics['nmad'].value:.3f} in the faintest ({last.label})."
    )
