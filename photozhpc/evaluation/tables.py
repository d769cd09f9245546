"""An evaluation for people (a table, figures) and for programs (evaluation.json)."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from photozhpc import __version__
from photozhpc.catalog.notes import PART_FOLDER
from photozhpc.catalog.photoz_catalog import QUANTILE_LEVELS
from photozhpc.evaluation.evaluate import Estimate, Evaluation, Group
from photozhpc.evaluation.figure_style import drawn, save_png_and_pdf
from photozhpc.evaluation.figures import figures_of
from photozhpc.evaluation.match import INTERVALS_PERCENT
from photozhpc.evaluation.truth import tables_text
from photozhpc.files.disk import disk_errors, write_durably
from photozhpc.metrics import GlobalGaussian

JSON_NAME = "evaluation.json"
_LABEL_WIDTH = 22


def write_evaluation(evaluation: Evaluation, out: str | Path | None = None) -> list[Path]:
    """Write evaluation.json and the figures, as PNG and PDF; return what was written.

    Args:
        out: folder; None: `default_folder`.

    Raises:
        RunError: the disk is full, or cannot be written.
    """
    folder = Path(out) if out is not None else default_folder(evaluation.catalog)
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    figures: list[Path] = []
    for name, draw in figures_of(evaluation).items():
        figures += save_png_and_pdf(drawn(draw), folder / f"{name}.png")
    document = evaluation_document(evaluation) | {"figures": [str(path) for path in figures]}
    write_durably(folder / JSON_NAME, (json.dumps(document, indent=2) + "\n").encode())
    return [folder / JSON_NAME, *figures]


def evaluation_document(evaluation: Evaluation) -> dict[str, Any]:
    """Return the inputs and results of an evaluation, ready for JSON; NaN becomes null."""
    groups = {
        kind: [_group_document(group) for group in groups]
        for kind, groups in evaluation.groups.items()
    }
    return {
        "format": 1,
        "photozhpc": __version__,
        "catalog": str(evaluation.catalog),
        "truth": [str(path) for path in evaluation.truth],
        "reference_redshift": evaluation.z_kind,
        "bootstrap": {"n_resamples": evaluation.n_resamples, "seed": evaluation.seed},
        "rows": evaluation.n_rows,
        "truth_galaxies": evaluation.n_truth,
        "compared": len(evaluation.matched.z_ref_N),
        "without_photoz": evaluation.n_without_photoz,
        "without_magnitude": evaluation.n_without_mag,
        "magnitude": {"band": evaluation.band, "from": evaluation.mag_origin},
        "intervals": QUANTILE_LEVELS if evaluation.has_intervals else None,
        "global_gaussian": asdict(evaluation.gaussian),
        "shifted_gaussian": asdict(evaluation.shifted_gaussian),
        "overall": groups.pop("overall")[0],
        "groups": groups,
        "notes": evaluation.notes,
    }


def evaluation_table(evaluation: Evaluation) -> str:
    """Return the text to print, at most 100 columns wide except for paths."""
    lines = [
        f"catalogue   {evaluation.catalog}: {evaluation.n_rows} rows",
        f"truth       {tables_text(evaluation.truth)}: {evaluation.n_truth} galaxies with "
        f"{evaluation.z_kind} redshifts",
        f"compared    {len(evaluation.matched.z_ref_N)} sources"
        + _unless_zero("; {} more without photoz", evaluation.n_without_photoz),
    ]
    if evaluation.band:
        lines.append(
            f"magnitude   {evaluation.band.upper()} from {evaluation.mag_origin}"
            + _unless_zero("; {} sources have none", evaluation.n_without_mag)
        )
    if not evaluation.has_intervals:
        lines.append("intervals   absent from this catalogue: point estimates only")
    lines += ["", *_block(evaluation, evaluation.groups, _POINT_HEADER, _point_line)]
    if evaluation.has_intervals:
        listed = {
            kind: [group for group in groups if group.n_intervals]
            for kind, groups in evaluation.groups.items()
        }
        lines += ["", *_block(evaluation, listed, _INTERVAL_HEADER, _interval_line), ""]
        lines += _interval_key(evaluation.gaussian, evaluation.shifted_gaussian)
    errors = (
        f"Errors are of a bootstrap with {evaluation.n_resamples} resamples; a dash: they cannot "
        f"tell it."
    )
    return "\n".join([*lines, "", errors, *(f"note: {note}" for note in evaluation.notes)])


_POINT_HEADER = f"{'n':>8}{'bias':>20}{'NMAD':>18}{'outliers, %':>18}"
_INTERVAL_HEADER = (
    f"{'n':>7}{'68 %':>12}{'90 %':>12}{'99 %':>12}{'KS':>8}{'CRPS':>9}{'Gauss':>9}{'shifted':>9}"
)


def _block(
    evaluation: Evaluation,
    listed: dict[str, list[Group]],
    header: str,
    line: Callable[[Group], str],
) -> list[str]:
    titles = {
        "magnitude": f"{(evaluation.band or '').upper()} magnitude",
        "redshift": f"{evaluation.z_kind} redshift",
        "flags": "flags",
        "ood": "distance from the training images",
    }
    lines = [f"{'':{_LABEL_WIDTH}}{header}"]
    for kind, groups in listed.items():
        if groups and kind in titles:
            lines.append(titles[kind])
        indent = "" if kind == "overall" else "  "
        lines += [f"{indent + group.label:{_LABEL_WIDTH}}{line(group)}" for group in groups]
    return lines


def _point_line(group: Group) -> str:
    statistics = group.statistics
    bias, nmad = _with_error(statistics["bias"], "+.4f"), _with_error(statistics["nmad"], ".4f")
    outliers = _with_error(statistics["outlier_fraction"], ".2f", 100)
    return f"{group.n:>8}{bias:>20}{nmad:>18}{outliers:>18}"


def _interval_line(group: Group) -> str:
    statistics = group.statistics
    coverages = "".join(
        f"{_with_error(statistics[f'coverage{p}'], '.1f', 100):>12}" for p in INTERVALS_PERCENT
    )
    scores = [statistics[name].value for name in ("crps", *_GAUSSIAN_SCORES)]
    ks = statistics["pit_ks"].value
    return f"{group.n_intervals:>7}{coverages}{ks:>8.3f}{''.join(f'{s:>9.4f}' for s in scores)}"


_GAUSSIAN_SCORES = ("crps_global_gaussian", "crps_shifted_gaussian")


def _interval_key(gaussian: GlobalGaussian, shifted: GlobalGaussian) -> Sequence[str]:
    return (
        "68, 90, 99 %: sources whose redshift is in that interval, in per cent.",
        "KS: distance of the PIT from uniform; 0.87 / sqrt(n) on average for perfect PDFs.",
        "CRPS: in redshift, smaller is better. Gauss: that of one Gaussian about photoz for all,",
        f"of the best width on this very truth, {gaussian.sigma:.4f} (1 + z); shifted: of the best "
        "width and",
        f"shift, {shifted.sigma:.4f} and {shifted.shift:+.4f} (1 + z).",
    )


def _with_error(estimate: Estimate, form: str, scale: float = 1) -> str:
    """Return "value ± error"; where there is no error, a dash as wide as one."""
    unsigned = form.removeprefix("+")
    error = format(scale * estimate.error, unsigned)
    if not math.isfinite(estimate.error):
        error = "-".rjust(len(format(0.0, unsigned)))
    return f"{format(scale * estimate.value, form)} ± {error}"


def _unless_zero(text: str, n: int) -> str:
    return text.format(n) if n else ""


def _group_document(group: Group) -> dict[str, Any]:
    document = asdict(group)
    for name, estimate in document.pop("statistics").items():
        document[name] = {
            key: value if math.isfinite(value) else None for key, value in estimate.items()
        }
    return document


def default_folder(catalog: Path) -> Path:
    """Return 'evaluation' in the --out folder of `photozhpc infer`; `catalog` may lie in it."""
    folder = catalog if catalog.is_dir() else catalog.parent
    return (folder.parent if folder.name == PART_FOLDER else folder) / "evaluation"
