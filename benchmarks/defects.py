"""Plant sharp defects and noise into the images of simulated skies, and see which are told.

python benchmarks/defects.py --out benchmarks/results/defects.json \
    --sky NAME STORE MODEL CLEAN TRUTH_GLOB [--sky ...]

A defect is planted in one band, within half an arcsecond of the source, and its light is added to
the forced fluxes. It matters if the redshift then differs by more than its stated error, half the
68% interval, from that of the image without it. CLEAN is a store of the same sky without cosmic
rays and hot pixels of its own: its flags are the false alarms. Stars are those of TRUTH_GLOB.
"""

import glob
import json
import time
from dataclasses import replace
from pathlib import Path

import click
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from scipy.stats import rankdata

from photozhpc.catalog import PhotozFlag
from photozhpc.catalog.predict import (
    compare_with_training,
    image_flags,
    photoz_flags,
    probability_of_stars,
)
from photozhpc.files.disk import write_durably
from photozhpc.model import load_checkpoint
from photozhpc.model.density import LEVEL_Q
from photozhpc.model.engine import make_engine
from photozhpc.mosaic.defects import find_defects
from photozhpc.store import CutoutStore, Measurements

N_PLANTED = 2000
REACH_ARCSEC = 0.5
RAY_SNR, HOT_SNR = 30.0, 300.0  # peak over the noise of a pixel
KRON_ARCSEC = 0.8  # stands for the Kron ellipse
# Kind -> (side of a hit in mosaic pixels, peak S/N, longest track in hits). Drizzling spreads a
# native pixel over two by two mosaic pixels.
KINDS = {
    "cosmic ray, one mosaic pixel": (1, RAY_SNR, 1),
    "cosmic ray, one native pixel": (2, RAY_SNR, 1),
    "cosmic ray, track": (2, RAY_SNR, 8),
    "hot pixel of the mosaic": (1, HOT_SNR, 1),
    "hot native pixel": (2, HOT_SNR, 1),
}


class Sky:
    """The usable sources of a store, and what a model says of them."""

    def __init__(self, path: str, checkpoint: str | None = None) -> None:
        self.store = CutoutStore.open(path)
        keys = [key for key in self.store.shards() if key.tile_id != "off-tile"]
        sources = [self.store.read_sources(key) for key in keys]
        measured = [self.store.read_measurements(key) for key in keys]
        self.id_N, self.ebv_N = (
            np.concatenate([getattr(s, name) for s in sources]) for name in ("source_id_N", "ebv_N")
        )
        columns = {
            name: np.concatenate([getattr(m, name) for m in measured]) for name in vars(measured[0])
        }
        self.measured = Measurements(**columns)
        self.cutout_NCSS = np.concatenate([self.store.read_cutouts(key) for key in keys])
        if checkpoint is not None:
            model = load_checkpoint(checkpoint)
            self.engine = make_engine(model, self.store.survey)
            side = self.engine.side_pix
            self.comparison = compare_with_training(model, self.store, side)

    def estimate(self, cutout_NCSS: NDArray, measured: Measurements, rows_N: NDArray) -> dict:
        """Redshift, half of its 68% interval, and what tells of a fault, by name."""
        side = self.engine.side_pix
        prediction = self.engine.predict(cutout_NCSS, self.ebv_N[rows_N], measured)
        z_N, ood_N = prediction.z_phot_N, prediction.ood_N
        interval_N2 = prediction.quantile_NQ[:, [LEVEL_Q.index(0.16), LEVEL_Q.index(0.84)]]
        middle_NCSS = np.ascontiguousarray(_middle(cutout_NCSS, side))
        flags_N = photoz_flags(middle_NCSS, side, measured.flags_NC, z_N)
        more_N = image_flags(middle_NCSS, side, self.store.survey, self.comparison.limits_2C)
        return {
            "z": z_N,
            "interval": interval_N2,
            "error": np.diff(interval_N2)[:, 0] / 2,
            "before": (ood_N > 1) | (flags_N != 0),
            "defect": (more_N & PhotozFlag.SHARP_DEFECT) != 0,
            "noise": (more_N & PhotozFlag.OTHER_NOISE) != 0,
        }


def plant(
    rng: np.random.Generator, noise_N: NDArray, size: int, reach_pix: float, kind: str
) -> NDArray[np.float32]:
    """Draw a defect for each source: light_NSS, in the unit of the noise of a pixel."""
    width, snr, longest = KINDS[kind]
    at_S = np.arange(size) - size // 2
    light_NSS = np.zeros((len(noise_N), size, size), np.float32)
    for light_SS, noise in zip(light_NSS, noise_N, strict=True):
        radius, angle = reach_pix * np.sqrt(rng.random()), rng.uniform(0, 2 * np.pi)
        y, x = radius * np.sin(angle), radius * np.cos(angle)
        if width == 1:
            y, x = np.rint(y), np.rint(x)
        length = int(rng.integers(3, longest + 1)) if longest > 1 else 1
        angle = rng.uniform(0, 2 * np.pi)
        along = np.array([np.sin(angle), np.cos(angle)])
        along /= abs(along).max()
        step_L2 = width * np.rint((np.arange(length)[:, None] - length // 2) * along)
        charge_L = 10.0 ** rng.normal(0, 0.3, length)
        for (dy, dx), charge in zip(step_L2, charge_L / charge_L.max(), strict=True):
            covered = np.outer(_covered(at_S - y - dy, width), _covered(at_S - x - dx, width))
            light_SS += (snr * noise * charge * covered).astype(np.float32)
    return light_NSS


def with_light(
    sky: Sky, rows_N: NDArray, light_NSS: NDArray, band_N: NDArray
) -> tuple[NDArray, Measurements]:
    """Add light to one band of each source: to its image and to its forced fluxes."""
    n, survey = np.arange(len(rows_N)), sky.store.survey
    cutout_NCSS, measured = sky.cutout_NCSS[rows_N].copy(), sky.measured.take(rows_N)
    cutout_NCSS[n, band_N] += light_NSS
    at_S = np.arange(light_NSS.shape[1]) - light_NSS.shape[1] // 2
    dy_N, dx_N = (v - np.floor(v + 0.5) for v in (measured.y_N, measured.x_N))
    distance_NSS = np.hypot(
        at_S[None, :, None] - dy_N[:, None, None], at_S[None, None, :] - dx_N[:, None, None]
    )

    def within(radius_arcsec: float) -> NDArray:
        share_NSS = np.clip(radius_arcsec / survey.pixel_scale_arcsec + 0.5 - distance_NSS, 0, 1)
        return (share_NSS * light_NSS).sum(axis=(1, 2))

    flux_NCR, kron_NC = measured.flux_NCR.copy(), measured.kron_flux_NC
    for r, radius_arcsec in enumerate(survey.aperture_radii_arcsec):
        flux_NCR[n, band_N, r] += within(radius_arcsec)
    if kron_NC is not None:
        kron_NC = kron_NC.copy()
        kron_NC[n, band_N] += within(KRON_ARCSEC)
    return cutout_NCSS, replace(measured, flux_NCR=flux_NCR, kron_flux_NC=kron_NC)


def planted_result(sky: Sky, before: dict, after: dict) -> dict:
    """Share of defects that matter, and of these the share that is told, before and now."""
    moved_N = abs(after["z"] - before["z"]) > before["error"]
    n = int(moved_N.sum())

    def share(told_N: NDArray, of_N: NDArray) -> float | None:
        return round(float(told_N[of_N].mean()), 4) if of_N.any() else None

    return {
        "planted": len(moved_N),
        "matter": n,
        "of_these_told_by_ood_or_flags_before": share(after["before"], moved_N),
        "of_these_told_by_sharp_defect": share(after["defect"], moved_N),
        "of_all_told_by_sharp_defect": share(after["defect"], np.ones_like(moved_N)),
    }


def noise_result(sky: Sky, rng: np.random.Generator, rows_N: NDArray, z_N: NDArray) -> list[dict]:
    """What is told of images with so many times the noise, and how many z are in their interval."""
    sigma_NC = pixel_noise(sky, rows_N)
    results = []
    for factor in (1.0, 1.5, 2.0, 3.0):
        extra = np.sqrt(factor**2 - 1)
        cutout_NCSS, measured = sky.cutout_NCSS[rows_N].copy(), sky.measured.take(rows_N)
        cutout_NCSS += extra * sigma_NC[:, :, None, None] * rng.standard_normal(cutout_NCSS.shape)
        err_NCR = measured.flux_err_NCR
        flux_NCR = measured.flux_NCR + extra * err_NCR * rng.standard_normal(err_NCR.shape)
        found = sky.estimate(
            cutout_NCSS.astype(np.float32),
            replace(measured, flux_NCR=flux_NCR.astype(np.float32)),
            rows_N,
        )
        low_N, high_N = found["interval"].T
        results.append(
            {
                "factor": factor,
                "in_68": round(float(((low_N <= z_N) & (z_N <= high_N))[z_N > 0].mean()), 4),
                "told_by_ood_or_flags_before": round(float(found["before"].mean()), 4),
                "told_by_other_noise": round(float(found["noise"].mean()), 4),
            }
        )
    return results


def pixel_noise(sky: Sky, rows_N: NDArray) -> NDArray:
    """The stated noise of a pixel, from the error of the smallest aperture, (N, C)."""
    survey = sky.store.survey
    radius_pix = min(survey.aperture_radii_arcsec) / survey.pixel_scale_arcsec
    smallest = int(np.argmin(survey.aperture_radii_arcsec))
    return sky.measured.flux_err_NCR[rows_N][:, :, smallest] / np.sqrt(np.pi) / radius_pix


def star_result(sky: Sky, is_star_N: NDArray, magnitude_N: NDArray) -> dict:
    """Area under the ROC curve of star_probability: of all, and by magnitude."""
    p_N = probability_of_stars(sky.measured, sky.store.survey, sky.comparison.point_sources)

    def of(rows_N: NDArray) -> dict:
        rows_N = rows_N & np.isfinite(p_N)
        p, star = p_N[rows_N], is_star_N[rows_N]
        n_stars, n_galaxies = int(star.sum()), int((~star).sum())
        rank_sum = rankdata(p)[star].sum()
        return {
            "stars": n_stars,
            "galaxies": n_galaxies,
            "auc": round(float((rank_sum - n_stars * (n_stars + 1) / 2) / n_stars / n_galaxies), 5),
            "above_half": int((p > 0.5).sum()),
            "of_these_stars": int(star[p > 0.5].sum()),
            "sum_of_probabilities": round(float(p.sum()), 1),
        }

    edges = [(17, 20), (20, 22), (22, 23), (23, 24), (24, 25), (25, 25.6)]
    bins = {f"{a}-{b}": of((magnitude_N > a) & (magnitude_N <= b)) for a, b in edges}
    return {
        "all": of(np.ones(len(p_N), bool)),
        **bins,
        "without_a_value": int((~np.isfinite(p_N)).sum()),
    }


def cost(sky: Sky, rows_N: NDArray) -> dict:
    """CPU microseconds a source of the model, of the search for defects, and of the stars."""
    side, measured = sky.engine.side_pix, sky.measured.take(rows_N)
    cutout_NCSS = np.ascontiguousarray(_middle(sky.cutout_NCSS[rows_N], side))
    fwhm_C = [
        b.psf_fwhm_arcsec / sky.store.survey.pixel_scale_arcsec for b in sky.store.survey.bands
    ]
    works = {
        "model": lambda: sky.engine.predict(cutout_NCSS, sky.ebv_N[rows_N], measured),
        "defects": lambda: find_defects(cutout_NCSS, side, np.array(fwhm_C)),
        "stars": lambda: probability_of_stars(
            measured, sky.store.survey, sky.comparison.point_sources
        ),
    }
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(7):  # in turn, so that all suffer alike from what else runs
        for name, work in works.items():
            started = time.process_time()
            work()
            seconds[name].append(time.process_time() - started)
    found = {name: round(1e6 * min(values) / len(rows_N), 2) for name, values in seconds.items()}
    return {**found, "share": round((found["defects"] + found["stars"]) / found["model"], 4)}


def run_sky(path: str, checkpoint: str, clean: str, truth: str) -> dict:
    sky, rng = Sky(path, checkpoint), np.random.default_rng(18)
    table = pa.concat_tables(
        [pq.read_table(f, columns=_TRUTH) for f in sorted(glob.glob(truth))],
        promote_options="default",
    )
    order_T = np.argsort(table["source_id"].to_numpy())
    at_N = order_T[np.searchsorted(table["source_id"].to_numpy()[order_T], sky.id_N)]
    assert (table["source_id"].to_numpy()[at_N] == sky.id_N).all()
    z_N, star_N, magnitude_N = (table[name].to_numpy()[at_N] for name in _TRUTH[1:])
    everything = np.arange(len(sky.id_N))
    untouched = sky.estimate(sky.cutout_NCSS, sky.measured, everything)
    usable_N = np.isfinite(untouched["z"]) & ~untouched["defect"] & ~star_N.astype(bool)
    usable_N &= np.isfinite(sky.measured.flux_err_NCR).all(axis=(1, 2))
    rows_N = np.sort(rng.permutation(np.flatnonzero(usable_N))[:N_PLANTED])
    before = {name: values[rows_N] for name, values in untouched.items()}
    sigma_NC, survey = pixel_noise(sky, rows_N), sky.store.survey
    band_N = rng.integers(0, len(survey.bands), len(rows_N))
    sigma_N = sigma_NC[np.arange(len(rows_N)), band_N]
    size, reach_pix = sky.store.cutout_size, REACH_ARCSEC / survey.pixel_scale_arcsec
    planted = {}
    for kind in KINDS:
        light_NSS = plant(rng, sigma_N, size, reach_pix, kind)
        after = sky.estimate(*with_light(sky, rows_N, light_NSS, band_N), rows_N)
        planted[kind] = planted_result(sky, before, after)
    dead_NSS = -np.nan_to_num(sky.cutout_NCSS[rows_N, band_N])
    cutout_NCSS, measured = with_light(sky, rows_N, dead_NSS, band_N)
    cutout_NCSS[np.arange(len(rows_N)), band_N] = 0.0
    planted["dead band"] = planted_result(sky, before, sky.estimate(cutout_NCSS, measured, rows_N))
    other = Sky(clean)
    side = sky.engine.side_pix
    alarms_N = find_defects(
        np.ascontiguousarray(_middle(other.cutout_NCSS, side)), side, _widths(survey)
    ).found_N
    return {
        "store": Path(path).name,
        "sources": len(sky.id_N),
        "side_pix": side,
        "planted": planted,
        "clean_sources": len(alarms_N),
        "false_alarms": round(float(alarms_N.mean()), 4),
        "flagged_without_planting": round(float(untouched["defect"].mean()), 4),
        "noise_warning": sky.comparison.warning,
        "noise": noise_result(sky, rng, rows_N, z_N[rows_N]),
        "stars": star_result(sky, star_N.astype(bool), magnitude_N),
        "cpu_us_per_source": cost(sky, rows_N),
    }


_TRUTH = ["source_id", "z_true", "is_star", "mag_f158"]


def _widths(survey) -> NDArray:
    return np.array([band.psf_fwhm_arcsec / survey.pixel_scale_arcsec for band in survey.bands])


def _middle(cutout_NCSS: NDArray, side: int) -> NDArray:
    first = cutout_NCSS.shape[-1] // 2 - side // 2
    return cutout_NCSS[..., first : first + side, first : first + side]


def _covered(offset_S: NDArray, width: float) -> NDArray:
    """Which part of a pixel, at an offset from its centre, a hit covers along an axis."""
    half = width / 2
    return np.clip(np.minimum(offset_S + 0.5, half) - np.maximum(offset_S - 0.5, -half), 0, 1)


@click.command()
@click.option("--sky", "skies", type=(str, str, str, str, str), multiple=True, required=True)
@click.option("--out", type=click.Path(path_type=Path), required=True)
def main(skies: tuple[tuple[str, str, str, str, str], ...], out: Path) -> None:
    torch.set_num_threads(1)
    result = {name: run_sky(*paths) for name, *paths in skies}
    write_durably(out, json.dumps({"skies": result}, indent=1).encode())
    for name, sky in result.items():
        print(name, json.dumps(sky, indent=1))


if __name__ == "__main__":
    main()
