"""The observed catalogue (positions, E(B-V), some redshifts) and the truth catalogue of a tile."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from photozhpc.files.disk import replacing
from photozhpc.sky.population import Population
from photozhpc.sky.spectra import Floats
from photozhpc.survey import ab_magnitude

# Lines that are taken for one another when a redshift rests on one of them (nm).
CONFUSED_LINES_NM = np.array([372.8, 500.7, 656.3])
LARGEST_WRONG_SHARE = 0.3


def label_probability(
    sources: Population, bands: tuple[str, ...], label_fraction: float, slope_per_mag: float = 0.7
) -> Floats:
    """Return the probability that a source has a spectroscopic redshift; zero for stars.

    A logistic in reference magnitude, colour (first band - last band) and redshift: brighter,
    bluer and nearer sources are preferred, as in real redshift surveys (e.g. Newman et al. 2015;
    Masters et al. 2017). The offset makes the mean over all sources `label_fraction`.
    """
    galaxy_N = ~sources.is_star_N
    if not galaxy_N.any() or label_fraction == 0.0:
        return np.zeros(len(sources))
    flux_NC = np.maximum(sources.flux_njy_NC, 1e-6)
    magnitude_N = ab_magnitude(sources.reference_njy_N)
    colour_N = np.clip(-2.5 * np.log10(flux_NC[:, 0] / flux_NC[:, -1]), -1.0, 5.0)
    score_N = (
        -slope_per_mag * (magnitude_N - 23.5)
        - (0.4 * (colour_N - 1.5) if len(bands) > 1 else 0.0)
        - 0.5 * (sources.z_N - 1.0)
    )
    target_mean = min(label_fraction * len(sources) / galaxy_N.sum(), 1.0)
    low, high = -40.0, 40.0
    for _ in range(60):
        middle = 0.5 * (low + high)
        mean = np.mean(1.0 / (1.0 + np.exp(-(score_N[galaxy_N] + middle))))
        low, high = (middle, high) if mean < target_mean else (low, middle)
    return np.where(galaxy_N, 1.0 / (1.0 + np.exp(-(score_N + low))), 0.0)


def measured_redshifts(
    rng: np.random.Generator, sources: Population, probability_N: Floats
) -> Floats:
    """Draw spectroscopic redshifts, NaN where there is none; scatter of 3e-4 (1 + z)."""
    chosen_N = rng.random(len(sources)) < probability_N
    z_N = sources.z_N + 3e-4 * (1.0 + sources.z_N) * rng.standard_normal(len(sources))
    return np.where(chosen_N, np.maximum(z_N, 1e-3), np.nan)


def confuse_redshifts(
    rng: np.random.Generator, sources: Population, z_spec_N: Floats, share: float
) -> tuple[Floats, NDArray[np.bool_]]:
    """Replace some redshifts by wrong ones, and say which.

    One line is taken for another: 1 + z changes by the ratio of their wavelengths. The share of
    wrong redshifts is `share` at magnitude 22 and doubles with each magnitude. Of zCOSMOS-bright
    (I < 22.5), 1% are wrong (Lilly et al. 2009, abstract); of real deep samples in the near
    infrared, several per cent.
    """
    magnitude_N = ab_magnitude(sources.reference_njy_N)
    share_N = np.minimum(share * 2.0 ** (magnitude_N - 22.0), LARGEST_WRONG_SHARE)
    wrong_N = (rng.random(len(sources)) < share_N) & np.isfinite(z_spec_N)
    true_N = rng.integers(0, 3, len(sources))
    taken_N = (true_N + rng.integers(1, 3, len(sources))) % 3
    ratio_N = CONFUSED_LINES_NM[true_N] / CONFUSED_LINES_NM[taken_N]
    confused_N = (1.0 + z_spec_N) * ratio_N - 1.0
    confused_N = np.where(confused_N > 0.01, confused_N, (1.0 + z_spec_N) / ratio_N - 1.0)
    return np.where(wrong_N, confused_N, z_spec_N), wrong_N


def write_catalogue(
    path: Path,
    source_id_N: NDArray[np.int64],
    ra_N: Floats,
    dec_N: Floats,
    ebv_N: Floats,
    z_spec_N: Floats,
) -> None:
    """Write the source list of a tile; a missing z_spec is a null. Atomic."""
    columns = {
        "source_id": pa.array(source_id_N, pa.int64()),
        "ra": pa.array(ra_N, pa.float64()),
        "dec": pa.array(dec_N, pa.float64()),
        "ebv": pa.array(ebv_N, pa.float32()),
        "z_spec": pa.array(z_spec_N.astype(np.float32), pa.float32(), mask=np.isnan(z_spec_N)),
    }
    _write(path, columns)


def write_truth(
    path: Path,
    source_id_N: NDArray[np.int64],
    ra_N: Floats,
    dec_N: Floats,
    ebv_N: Floats,
    sources: Population,
    bands: tuple[str, ...],
    further: dict[str, NDArray],
) -> None:
    """Write true positions and redshifts, AB magnitudes before extinction, and `further` columns.

    Atomic.
    """
    flux_NC = sources.flux_njy_NC
    columns: dict[str, NDArray] = {
        "source_id": source_id_N,
        "ra": ra_N,
        "dec": dec_N,
        "ebv": ebv_N.astype(np.float32),
        "z_true": sources.z_N.astype(np.float32),
        "is_star": sources.is_star_N,
        "is_quiescent": sources.quiescent_N,
        "sed_type": sources.sed_type_N.astype(np.float32),
        "a_v": sources.a_v_N.astype(np.float32),
        "log_mass": sources.log_mass_N.astype(np.float32),
        "half_light_radius_arcsec": sources.half_light_arcsec_N.astype(np.float32),
        "bulge_radius_arcsec": sources.bulge_radius_arcsec_N.astype(np.float32),
        "disk_radius_arcsec": sources.disk_radius_arcsec_N.astype(np.float32),
        "bulge_axis_ratio": sources.bulge_axis_ratio_N.astype(np.float32),
        "disk_axis_ratio": sources.disk_axis_ratio_N.astype(np.float32),
        "angle_rad": sources.angle_rad_N.astype(np.float32),
    }
    for c, band in enumerate(bands):
        magnitude_N = ab_magnitude(np.maximum(flux_NC[:, c], 1e-12))
        columns[f"mag_{band.lower()}"] = magnitude_N.astype(np.float32)
        share_N = sources.bulge_njy_NC[:, c] / np.maximum(flux_NC[:, c], 1e-12)
        columns[f"bulge_to_total_{band.lower()}"] = share_N.astype(np.float32)
    _write(path, columns | further)


def _write(path: Path, columns: dict[str, Any]) -> None:
    with replacing(path) as partial:
        pq.write_table(pa.table(columns), partial)
