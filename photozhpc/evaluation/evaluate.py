"""The accuracy of a catalogue: statistics overall and in bins, with bootstrap errors."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from photozhpc.catalog.photoz_catalog import PhotozFlag
from photozhpc.errors import CatalogError, SourceListError
from photozhpc.evaluation.match import INTERVALS_PERCENT, Matched, match
from photozhpc.evaluation.truth import read_truth, truth_tables
from photozhpc.files.objects import AnyPath
from photozhpc.metrics import (
    GlobalGaussian,
    bootstrap_errors,
    crps_of_gaussian,
    fit_global_gaussian,
    normalised_residual,
    sample_statistics,
)
from photozhpc.survey import SourceColumns

MIN_IN_BIN = 20
N_RESAMPLES = 200  # enough for a standard error (Efron & Tibshirani 1993, section 6.4)
_MAX_BINS = 10
_MAG_WIDTHS = (0.5, 1.0, 2.0, 4.0)
_Z_WIDTHS = (0.25, 0.5, 1.0, 2.0)


@dataclass(frozen=True)
class Estimate:
    """A statistic of a sample and its bootstrap standard error."""

    value: float
    error: float


@dataclass(frozen=True)
class Group:
    """The statistics of a group of sources.

    Attributes:
        label: which sources.
        low, high: the bin, low <= x < high; None if the group is not a bin.
        n: sources with a redshift in the catalogue; the point statistics are of these.
        n_intervals: those of them with all intervals; the other statistics are of these.
        statistics: Estimates of bias, nmad, outlier_fraction; where there are intervals also of
            coverage68, coverage90, coverage99, pit_ks, crps; and of crps_global_gaussian and
            crps_shifted_gaussian, on the sources with intervals if there are any.
    """

    label: str
    low: float | None
    high: float | None
    n: int
    n_intervals: int
    statistics: dict[str, Estimate]


@dataclass(frozen=True)
class Evaluation:
    """The result of `evaluate`.

    Attributes:
        z_kind: what the reference redshifts are, in words.
        matched: the sources compared: those with a redshift.
        n_rows, n_truth, n_without_photoz, n_without_mag: rows of the catalogue; galaxies of the
            truth; sources in both without a redshift; sources compared without a magnitude.
        band, mag_origin: of the magnitudes; None if there are none.
        gaussian, shifted_gaussian: those with the best CRPS on this sample.
        groups: by "overall", "magnitude", "redshift", "flags" and "ood"; those with fewer than
            20 sources are merged with a neighbour or left out, with a line in `notes`.
        truth_notes: the notes about the truth.
    """

    catalog: Path
    truth: tuple[AnyPath, ...]
    z_kind: str
    matched: Matched
    n_rows: int
    n_truth: int
    n_without_photoz: int
    n_without_mag: int
    band: str | None
    mag_origin: str | None
    gaussian: GlobalGaussian
    shifted_gaussian: GlobalGaussian
    groups: dict[str, list[Group]]
    notes: list[str]
    n_resamples: int
    seed: int
    truth_notes: tuple[str, ...] = ()

    @property
    def has_intervals(self) -> bool:
        return self.groups["overall"][0].n_intervals > 0


def evaluate(
    catalog: str | Path,
    truth: Sequence[str | AnyPath],
    *,
    n_resamples: int = N_RESAMPLES,
    seed: int = 0,
    incomplete_ok: bool = False,
    columns: SourceColumns | None = None,
) -> Evaluation:
    """Compare a catalogue with truth tables.

    Args:
        catalog: as `read_catalog` takes it.
        truth, columns: as `read_truth` takes them.
        n_resamples, seed: of the bootstrap.
        incomplete_ok: accept a run that has not finished, and use its parts.

    Raises:
        CatalogError: the catalogue is missing, not finished or damaged, or has no redshift of any
            galaxy of the truth.
        SourceListError: a truth table is missing, damaged, lacks a column, lists a source twice,
            or is of other sources.
    """
    tables = tuple(truth_tables(truth))
    reference = read_truth(tables, columns)
    if not len(reference.source_id_N):
        raise SourceListError(
            f"{tables[0]}: the truth has no galaxy with a redshift above 0; pass another table"
        )
    joined = match(catalog, reference, incomplete_ok=incomplete_ok)
    if not len(joined.matched.source_id_N):
        raise SourceListError(
            f"{catalog} and {tables[0]} have no source_id in common (for example "
            f"{joined.example_id} in the catalogue and {reference.source_id_N[0]} in the truth); "
            f"pass the truth table of this catalogue's sources"
        )
    has_photoz_N = np.isfinite(joined.matched.z_phot_N)
    if not has_photoz_N.any():
        raise CatalogError(
            f"{catalog}: photoz is null for all {len(has_photoz_N)} sources that are in the truth; "
            f"pass a truth table of other sources"
        )
    matched = joined.matched.rows(has_photoz_N)
    has_intervals_N = np.isfinite(matched.crps_N)
    judged_N = has_intervals_N if has_intervals_N.any() else np.ones_like(has_intervals_N)
    judged = matched.rows(judged_N)
    gaussians = [
        fit_global_gaussian(judged.z_ref_N, judged.z_phot_N, with_shift=with_shift)
        for with_shift in (False, True)
    ]
    scores = _Scores.of(matched, gaussians, judged_N)
    rng = np.random.default_rng(seed)
    notes = list(reference.notes)
    groups: dict[str, list[Group]] = {}
    for kind, cuts in _cuts(matched, joined.band).items():
        groups[kind] = []
        for cut in cuts:
            if len(cut.row_N) >= MIN_IN_BIN or kind == "overall":
                groups[kind].append(scores.group(cut, n_resamples, rng))
            elif len(cut.row_N):
                notes.append(f"{cut.label}: {len(cut.row_N)} sources, too few to be listed")
        if any(cut.is_merged for cut in cuts):
            notes.append(
                f"{kind}: bins with fewer than {MIN_IN_BIN} sources were merged with a neighbour"
            )
    return Evaluation(
        catalog=Path(catalog),
        truth=tables,
        z_kind=reference.z_kind,
        matched=matched,
        n_rows=joined.n_rows,
        n_truth=len(reference.source_id_N),
        n_without_photoz=int(np.count_nonzero(~has_photoz_N)),
        n_without_mag=int(np.count_nonzero(~np.isfinite(matched.mag_N))),
        band=joined.band,
        mag_origin=joined.mag_origin,
        gaussian=gaussians[0],
        shifted_gaussian=gaussians[1],
        groups=groups,
        notes=notes,
        n_resamples=n_resamples,
        seed=seed,
        truth_notes=reference.notes,
    )


@dataclass(frozen=True)
class _Cut:
    """The rows of a group."""

    label: str
    row_N: NDArray[np.intp]
    low: float | None = None
    high: float | None = None
    is_merged: bool = False


@dataclass(frozen=True)
class _Scores:
    """The scores of each source, from which the statistics of any group follow."""

    dz_N: NDArray[np.float64]
    pit_N: NDArray[np.float64]
    has_intervals_N: NDArray[np.bool_]
    means: dict[str, NDArray[np.float64]]

    @classmethod
    def of(
        cls, matched: Matched, gaussians: Sequence[GlobalGaussian], judged_N: NDArray[np.bool_]
    ) -> "_Scores":
        has_intervals_N = np.isfinite(matched.crps_N)
        means = {}
        if has_intervals_N.any():
            for i, percent in enumerate(INTERVALS_PERCENT):
                means[f"coverage{percent}"] = matched.inside_NI[:, i]
            means["crps"] = matched.crps_N
        names = ("crps_global_gaussian", "crps_shifted_gaussian")
        for name, gaussian in zip(names, gaussians, strict=True):
            score_N = crps_of_gaussian(matched.z_ref_N, matched.z_phot_N, gaussian)
            means[name] = np.where(judged_N, score_N, np.nan)
        dz_N = normalised_residual(matched.z_ref_N, matched.z_phot_N)
        return cls(dz_N, matched.pit_N, has_intervals_N, means)

    def group(self, cut: _Cut, n_resamples: int, rng: np.random.Generator) -> Group:
        dz_N = self.dz_N[cut.row_N]
        pit_N = self.pit_N[cut.row_N] if self.has_intervals_N.any() else None
        means = {name: value_N[cut.row_N] for name, value_N in self.means.items()}
        values = sample_statistics(dz_N, pit_N, means)
        errors = bootstrap_errors(dz_N, pit_N, means, n_resamples=n_resamples, rng=rng)
        return Group(
            label=cut.label,
            low=cut.low,
            high=cut.high,
            n=len(dz_N),
            n_intervals=int(np.count_nonzero(self.has_intervals_N[cut.row_N])),
            statistics={name: Estimate(float(values[name]), errors[name]) for name in values},
        )


def _cuts(matched: Matched, band: str | None) -> dict[str, list[_Cut]]:
    flags_N, ood_N = matched.flags_N, matched.ood_N
    flags = {"no flag": flags_N == 0, "any flag": flags_N != 0}
    flags |= {f"flag {flag.name}": (flags_N & flag.value) != 0 for flag in PhotozFlag}
    ood = {"photoz_ood <= 1": ood_N <= 1, "photoz_ood > 1": ood_N > 1}
    return {
        "overall": [_Cut("all", np.arange(len(flags_N)))],
        "magnitude": _binned(matched.mag_N, _MAG_WIDTHS, (band or "").upper()),
        "redshift": _binned(matched.z_ref_N, _Z_WIDTHS, "z"),
        "flags": [_Cut(label, np.flatnonzero(rows_N)) for label, rows_N in flags.items()],
        "ood": [_Cut(label, np.flatnonzero(rows_N)) for label, rows_N in ood.items()],
    }


def _binned(x_N: NDArray[np.float64], widths: Sequence[float], name: str) -> list[_Cut]:
    """Bin by the first of the widths that gives at most ten bins; a NaN is in no bin.

    The bin with the fewest sources is merged with the smaller of its neighbours until all have 20.
    """
    finite_N = np.flatnonzero(np.isfinite(x_N))
    for width in widths:
        steps, counts = np.unique(np.floor(x_N[finite_N] / width), return_counts=True)
        bins = [(step, step, n) for step, n in zip(steps, counts, strict=True)]
        while len(bins) > 1 and min(n for *_, n in bins) < MIN_IN_BIN:
            i = min(range(len(bins)), key=lambda k: bins[k][2])
            left = i > 0 and (i == len(bins) - 1 or bins[i - 1][2] <= bins[i + 1][2])
            i -= int(left)
            bins[i : i + 2] = [(bins[i][0], bins[i + 1][1], bins[i][2] + bins[i + 1][2])]
        if len(bins) <= _MAX_BINS:
            break
    cuts = []
    for first, last, _ in bins:
        low, high = float(first * width), float((last + 1) * width)
        rows_N = finite_N[(x_N[finite_N] >= low) & (x_N[finite_N] < high)]
        cuts.append(_Cut(f"{name} {low:g} to {high:g}", rows_N, low, high, last > first))
    return cuts
