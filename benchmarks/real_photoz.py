"""Photo-z of real galaxies from a table: method 'photometry' and its rivals, CANDELS-COSMOS.

    python benchmarks/real_photoz.py DATA cross-validate [METHOD ...]
    python benchmarks/real_photoz.py DATA test [METHOD ...]

DATA holds candels_cosmos_{train,test,output}.txt of gpz_pype's test data (Unlicense): 3 864
galaxies to train on, 966 for the test, and what GPz predicted for these. Every choice is made by
`cross-validate`, five folds of the 3 864. `test` fits to all of them and predicts the 966, once.
Results are added to benchmarks/results/real_photoz.json, densities to --work.

Every method sees the dereddened magnitudes, all colours, and (the forests, boosting and the
template fit) the errors; point estimates as in rivals.py.
"""

import argparse
import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from astropy.table import Table
from numpy.typing import NDArray
from rivals import RIVALS, Grid, Result, better_estimate, scores, stacked, tuned
from side_by_side import processor

from photozhpc import __version__
from photozhpc.config import from_mapping, read_config
from photozhpc.model import load_checkpoint
from photozhpc.model.photometry_engine import PhotometryEngine
from photozhpc.model.redshift_grid import grid_cells
from photozhpc.model.train import train
from photozhpc.model.train_config import TrainConfig
from photozhpc.store import FluxTable
from photozhpc.survey import Survey, ab_magnitude

RESULTS = Path(__file__).parent / "results" / "real_photoz.json"
SURVEY = from_mapping(
    Survey,
    {
        "name": "candels-cosmos-table",
        "bands": [
            {"name": "F606W", "psf_fwhm_arcsec": 0.1, "extinction_r": 2.471},
            {"name": "F814W", "psf_fwhm_arcsec": 0.1, "extinction_r": 1.526},
            {"name": "F125W", "psf_fwhm_arcsec": 0.13, "extinction_r": 0.726},
            {"name": "F160W", "psf_fwhm_arcsec": 0.17, "extinction_r": 0.512},
        ],
        "aperture_radii_arcsec": [],
        "total_columns": {"value": "lupt_{band}", "error": "lupterr_{band}", "kind": "magnitude"},
        "source_columns": {"source_id": "id", "z_spec": "z_spec", "ebv": "EBV"},
    },
    "real_photoz.py",
)
GRID = Grid(256, 6.5)
N_FOLDS = 5
OURS = "photozhpc"
TEMPLATES = "template fit"
STACK = "stack of the best two rivals"
METHODS = (OURS, *RIVALS, TEMPLATES)


class Galaxies:
    """Rows of a table, as the product reads it, and features for the rivals."""

    def __init__(self, path: Path) -> None:
        self.path = path
        store = FluxTable.open(path, SURVEY)
        (key,) = store.shards()
        measured, self.sources = store.read_measurements(key), store.read_sources(key)
        self.z_N = self.sources.z_spec_N.astype(np.float64)
        r_C = np.array([band.extinction_r for band in SURVEY.bands])
        gain_NC = 10 ** (0.4 * self.sources.ebv_N[:, None] * r_C)
        self.flux_NC = measured.kron_flux_NC.astype(np.float64) * gain_NC
        self.err_NC = measured.kron_flux_err_NC.astype(np.float64) * gain_NC
        mag_NC = ab_magnitude(self.flux_NC)
        pairs = [(a, b) for a in range(4) for b in range(a + 1, 4)]
        colour_NM = np.stack([mag_NC[:, a] - mag_NC[:, b] for a, b in pairs], axis=1)
        self.mag_NC = mag_NC
        self.x_NF = np.hstack([colour_NM, mag_NC, 1.0857 * self.err_NC / self.flux_NC])


def ours(fit: Galaxies, rows_N: NDArray, new: Galaxies, new_rows_M: NDArray, work: Path) -> dict:
    """Train, as a user would, on some rows of a table; predict rows of another.

    Returns:
        density_MK (calibrated), z_phot_M, quantile_MQ and the recipe's facts.
    """
    work.mkdir(parents=True, exist_ok=True)
    table = Table.read(fit.path, format="ascii.commented_header")[rows_N]
    table.write(work / "train.ecsv", overwrite=True)
    config = read_config(TrainConfig, "photometry", "recipe")
    config = replace(
        config,
        out=str(work / "run"),
        store=str(work / "train.ecsv"),
        survey=str(_survey_file(work)),
        photometry=replace(config.photometry, bins=GRID.n_bins, z_max=GRID.z_max),
    )
    started = time.process_time()
    model_file = work / "run" / "model.safetensors"
    checkpoint = load_checkpoint(model_file if model_file.exists() else train(config))
    seconds = time.process_time() - started
    engine = PhotometryEngine(checkpoint.model, SURVEY, pdf="grid")
    store = FluxTable.open(new.path, SURVEY)
    (key,) = store.shards()
    prediction, pdf_NP = engine.predict_pdf(
        np.empty(0), new.sources.ebv_N, store.read_measurements(key)
    )
    border_E = grid_cells(engine.pdf.axis_P)
    cdf_NE = np.pad((pdf_NP * np.diff(border_E)).cumsum(axis=1), ((0, 0), (1, 0)))
    cdf_NE = np.array([np.interp(GRID.edge_E, border_E, cdf_E / cdf_E[-1]) for cdf_E in cdf_NE])
    return {
        "density_MK": np.diff(cdf_NE, axis=1).astype(np.float32)[new_rows_M],
        "z_phot_M": prediction.z_phot_N.astype(np.float64)[new_rows_M],
        "quantile_MQ": prediction.quantile_NQ[new_rows_M],
        "cpu_seconds": round(seconds, 1),
        "labels": checkpoint.training["labels"],
    }


def _survey_file(work: Path) -> Path:
    import yaml

    from photozhpc.config import to_mapping

    path = work / "survey.yaml"
    path.write_text(yaml.safe_dump(to_mapping(SURVEY)))
    return path


def rival(name: str, fit: Galaxies, rows_N: NDArray, new: Galaxies, new_rows_M: NDArray) -> Result:
    """Return densities by a rival that is tuned on the fitted rows alone."""
    z_N = fit.z_N[rows_N]
    if name in RIVALS:
        return tuned(RIVALS[name], fit.x_NF[rows_N], z_N, new.x_NF[new_rows_M], GRID, seed=1)
    from template_fit import template_densities

    started = time.process_time()
    bands, magnitude_N = SURVEY.band_names, fit.mag_NC[rows_N][:, -1]
    density_NK, density_MK = (
        template_densities(g.flux_NC[rows], g.err_NC[rows], bands, GRID, magnitude_N, z_N)
        for g, rows in ((fit, rows_N), (new, new_rows_M))
    )
    estimate = better_estimate(density_NK, z_N, GRID)
    return Result(density_MK, density_NK, {}, estimate, time.process_time() - started)


def gpz(data: Path, new: Galaxies) -> dict:
    """Return the scores of GPz's Gaussians, from its file."""
    table = Table.read(data / "candels_cosmos_output.txt", format="ascii")
    assert (np.array(table["col1"]) == new.sources.source_id_N).all()
    mean_M, sigma_M = np.array(table["col2"]), np.array(table["col3"])
    from scipy.special import ndtr

    cdf_ME = ndtr((GRID.edge_E - mean_M[:, None]) / sigma_M[:, None])
    density_MK = np.diff(cdf_ME, axis=1)
    density_MK /= density_MK.sum(axis=1, keepdims=True)
    return scores(GRID, density_MK.astype(np.float32), new.z_N, mean_M)


def cross_validate(methods: list[str], galaxies: Galaxies, work: Path) -> dict[str, dict]:
    fold_N = np.random.default_rng(2026).permutation(len(galaxies.z_N)) % N_FOLDS
    found: dict[str, dict] = {}
    results: dict[str, list[Result]] = {}
    for name in methods:
        density_NK = np.empty((len(galaxies.z_N), GRID.n_bins), np.float32)
        z_phot_N, quantile_NQ = np.empty(len(galaxies.z_N)), None
        facts: dict = {"cpu_seconds": 0.0}
        for fold in range(N_FOLDS):
            rows_N, own_N = fold_N != fold, fold_N == fold
            if name == OURS:
                made = ours(galaxies, rows_N, galaxies, own_N, work / f"fold{fold}")
                density_NK[own_N], z_phot_N[own_N] = made["density_MK"], made["z_phot_M"]
                if quantile_NQ is None:
                    quantile_NQ = np.empty((len(z_phot_N), 6))
                quantile_NQ[own_N] = made["quantile_MQ"]
                facts["cpu_seconds"] += made["cpu_seconds"]
            else:
                result = rival(name, galaxies, rows_N, galaxies, own_N)
                density_NK[own_N], z_phot_N[own_N] = result.density_MK, result.z_phot(GRID)
                results.setdefault(name, []).append(result)
                facts["cpu_seconds"] += result.cpu_seconds
                facts.setdefault("settings", []).append(result.settings | {"z": result.estimate})
        np.save(work / f"cv_{name.replace(' ', '_')}.npy", density_NK.astype(np.float16))
        found[name] = scores(GRID, density_NK, galaxies.z_N, z_phot_N, quantile_NQ) | facts
        _show(name, found[name])
    best = sorted((n for n in results if n in RIVALS), key=lambda n: found[n]["crps"])[:2]
    if len(best) == 2:
        density_NK, z_phot_N = np.empty_like(density_NK), np.empty(len(galaxies.z_N))
        for fold, pair in enumerate(zip(*(results[name] for name in best), strict=True)):
            own_N = fold_N == fold
            pool = stacked(*pair, galaxies.z_N[~own_N], GRID)
            density_NK[own_N], z_phot_N[own_N] = pool.density_MK, pool.z_phot(GRID)
        found[STACK] = scores(GRID, density_NK, galaxies.z_N, z_phot_N) | {"of": best}
        _show(STACK, found[STACK])
    return found


def test(methods: list[str], fit: Galaxies, new: Galaxies, data: Path, work: Path) -> dict:
    found: dict[str, dict] = {"GPz": gpz(data, new)}
    _show("GPz", found["GPz"])
    rows_N, new_rows_M = np.ones(len(fit.z_N), bool), np.ones(len(new.z_N), bool)
    results = {}
    for name in methods:
        if name == OURS:
            made = ours(fit, rows_N, new, new_rows_M, work / "all")
            arrays = [made.pop(key) for key in ("density_MK", "z_phot_M", "quantile_MQ")]
            found[name] = scores(GRID, arrays[0], new.z_N, *arrays[1:]) | made
            density_MK = arrays[0]
        else:
            result = rival(name, fit, rows_N, new, new_rows_M)
            results[name] = result
            density_MK = result.density_MK
            found[name] = scores(GRID, density_MK, new.z_N, result.z_phot(GRID)) | {
                "settings": result.settings | {"z": result.estimate},
                "cpu_seconds": round(result.cpu_seconds, 1),
            }
        np.save(work / f"test_{name.replace(' ', '_')}.npy", density_MK.astype(np.float16))
        _show(name, found[name])
    labels = {n: GRID.crps(r.labels_NK, fit.z_N).mean() for n, r in results.items() if n in RIVALS}
    best = sorted(labels, key=labels.__getitem__)[:2]
    if len(best) == 2:
        pool = stacked(results[best[0]], results[best[1]], fit.z_N, GRID)
        found[STACK] = scores(GRID, pool.density_MK, new.z_N, pool.z_phot(GRID))
        found[STACK] |= {"of": best, **pool.settings}
        _show(STACK, found[STACK])
    return found


def _show(name: str, row: dict) -> None:
    print(
        f"{name:30s} NMAD {row['nmad']:.4f} +- {row['nmad_err']:.4f}  outliers "
        f"{row['outliers_percent']:.2f} +- {row['outliers_percent_err']:.2f}  bias "
        f"{row['bias']:+.4f}  CRPS {row['crps']:.4f} +- {row['crps_err']:.4f}  in 68/90/99 "
        f"{row['coverage_68']:.1f}/{row['coverage_90']:.1f}/{row['coverage_99']:.1f}  KS "
        f"{row['pit_ks']:.3f}  {row.get('cpu_seconds', 0):.0f} s",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("what", choices=("cross-validate", "test"))
    parser.add_argument("methods", nargs="*", help=f"of {', '.join(METHODS)}; default: all")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "real_photoz")
    args = parser.parse_args()
    methods = args.methods or list(METHODS)
    torch.set_num_threads(1)
    args.work.mkdir(parents=True, exist_ok=True)
    fit = Galaxies(args.data / "candels_cosmos_train.txt")
    if args.what == "test":
        new = Galaxies(args.data / "candels_cosmos_test.txt")
        found = test(methods, fit, new, args.data, args.work)
    else:
        found = cross_validate(methods, fit, args.work)
    document = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    document |= {"photozhpc": __version__, "processor": processor()}
    document[args.what] = document.get(args.what, {}) | found
    RESULTS.write_text(json.dumps(document, indent=1) + "\n")
    print(json.dumps({args.what: {name: row["crps"] for name, row in found.items()}}))


if __name__ == "__main__":
    main()
