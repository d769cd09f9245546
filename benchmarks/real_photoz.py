"""Photo-z of real galaxies from a table: method 'photometry' and its rivals, CANDELS-COSMOS.

    python benchmarks/real_photoz.py DATA cross-validate [METHOD ...] [--work DIR]
    python benchmarks/real_photoz.py DATA test [METHOD ...] [--work DIR]

DATA holds candels_cosmos_{train,test,output}.txt of gpz_pype's test data (Unlicense): 3 864
galaxies to train on, 966 for the test, and what GPz predicted for these. Every choice is made by
`cross-validate`, five folds of the 3 864. `test` fits to all of them and predicts the 966, once.
Results are added to benchmarks/results/real_photoz.json. Densities are written to --work, and a
method that has its densities there is not fitted again, so a run that was stopped continues.

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
from rivals import RIVALS, Grid, Result, kept, on_grid, paired, scores, stacked, tuned
from side_by_side import processor

from photozhpc import __version__
from photozhpc.config import from_mapping, read_config
from photozhpc.model import load_checkpoint
from photozhpc.model.photometry_engine import PhotometryEngine
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
TEMPLATES, BPZ_FIT = "template fit, COSMOS SEDs", "template fit, BPZ SEDs"
STACK = "stack of the best two rivals"
METHODS = (OURS, *RIVALS, TEMPLATES, BPZ_FIT)


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


def ours(fit: Galaxies, rows_N: NDArray, new: Galaxies, new_rows_M: NDArray, work: Path) -> Result:
    """Train, as a user would, on some rows of a table; predict rows of another."""
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
    return Result(
        on_grid(GRID, pdf_NP[new_rows_M], engine.pdf.axis_P),
        prediction.z_phot_N.astype(np.float64)[new_rows_M],
        np.empty(0),
        {"labels": checkpoint.training["labels"]},
        seconds,
        prediction.quantile_NQ[new_rows_M],
    )


def _survey_file(work: Path) -> Path:
    import yaml

    from photozhpc.config import to_mapping

    path = work / "survey.yaml"
    path.write_text(yaml.safe_dump(to_mapping(SURVEY)))
    return path


def fitted(
    name: str, fit: Galaxies, rows_N: NDArray, new: Galaxies, new_rows_M: NDArray, work: Path
) -> Result:
    """Return densities by a method that sees, and is tuned on, the fitted rows alone."""
    z_N = fit.z_N[rows_N]
    if name == OURS:
        return ours(fit, rows_N, new, new_rows_M, work)
    if name in RIVALS:
        return tuned(RIVALS[name], fit.x_NF[rows_N], z_N, new.x_NF[new_rows_M], GRID, seed=1)
    from template_fit import BPZ, COSMOS, template_fit

    seds = {TEMPLATES: COSMOS, BPZ_FIT: BPZ}[name]
    samples = [(g.flux_NC[rows], g.err_NC[rows]) for g, rows in ((fit, rows_N), (new, new_rows_M))]
    return template_fit(samples[0], z_N, samples[1], SURVEY.band_names, GRID, seds)


def fitted_and_stacked(
    methods: list[str],
    fit: Galaxies,
    rows_N: NDArray,
    new: Galaxies,
    new_rows_M: NDArray,
    work: Path,
) -> dict[str, Result]:
    """Return results of the methods, and the stack of the best two rivals among them."""
    results = {}
    for name in methods:
        path = work / f"{name.replace(', ', '-').replace(' ', '-')}.npz"
        results[name] = kept(
            path, lambda name=name: fitted(name, fit, rows_N, new, new_rows_M, work)
        )
        print(f"{time.strftime('%H:%M')} {name}: {results[name].cpu_seconds:.0f} s", flush=True)
    z_N = fit.z_N[rows_N]
    crps = {n: GRID.crps(r.labels_NK, z_N).mean() for n, r in results.items() if n != OURS}
    best = sorted(crps, key=crps.__getitem__)[:2]
    if len(best) == 2:
        results[STACK] = stacked(results[best[0]], results[best[1]], z_N, GRID)
        results[STACK].settings["of"] = best
    return results


def gpz(data: Path, new: Galaxies) -> Result:
    """Return GPz's Gaussians, from its file."""
    table = Table.read(data / "candels_cosmos_output.txt", format="ascii")
    assert (np.array(table["col1"]) == new.sources.source_id_N).all()
    mean_M, sigma_M = np.array(table["col2"]), np.array(table["col3"])
    from scipy.special import ndtr

    cdf_ME = ndtr((GRID.edge_E - mean_M[:, None]) / sigma_M[:, None])
    density_MK = np.diff(cdf_ME, axis=1)
    density_MK /= density_MK.sum(axis=1, keepdims=True)
    return Result(density_MK.astype(np.float32), mean_M, np.empty(0), {}, 0.0)


def cross_validate(methods: list[str], galaxies: Galaxies, work: Path) -> dict[str, Result]:
    """Return results on the labels, each from a fit to the other folds."""
    fold_N = np.random.default_rng(2026).permutation(len(galaxies.z_N)) % N_FOLDS
    joined: dict[str, Result] = {}
    for fold in range(N_FOLDS):
        own_N = fold_N == fold
        parts = fitted_and_stacked(methods, galaxies, ~own_N, galaxies, own_N, work / f"fold{fold}")
        for name, part in parts.items():
            if name not in joined:
                joined[name] = Result(*_empty(part, len(own_N)))
            whole = joined[name]
            for key in ("density_MK", "z_phot_M", "quantile_MQ"):
                if getattr(part, key).size:
                    getattr(whole, key)[own_N] = getattr(part, key)
            whole.cpu_seconds += part.cpu_seconds
            whole.settings[f"fold {fold}"] = part.settings
    return joined


def _empty(like: Result, n: int) -> tuple:
    """Return the arguments of a Result of n galaxies, to be filled."""
    density_NK = np.empty((n, GRID.n_bins), np.float32)
    quantile_NQ = (
        np.empty((n, *like.quantile_MQ.shape[1:])) if like.quantile_MQ.size else np.empty(0)
    )
    return density_NK, np.empty(n), np.empty(0), {}, 0.0, quantile_NQ


def rows_of(results: dict[str, Result], z_M: NDArray) -> dict[str, dict]:
    """Return the scores of results, and their paired differences to ours."""
    rows = {}
    for name, result in results.items():
        rows[name] = scores(GRID, result, z_M) | {
            "settings": result.settings,
            "cpu_seconds": round(result.cpu_seconds, 1),
        }
        if name != OURS and OURS in results:
            rows[name]["minus_ours"] = paired(GRID, [result], [results[OURS]], z_M)
        _show(name, rows[name])
    return rows


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
        all_N, new_M = np.ones(len(fit.z_N), bool), np.ones(len(new.z_N), bool)
        results = {"GPz": gpz(args.data, new)}
        results |= fitted_and_stacked(methods, fit, all_N, new, new_M, args.work / "all")
        found = rows_of(results, new.z_N)
    else:
        found = rows_of(cross_validate(methods, fit, args.work), fit.z_N)
    document = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    document |= {"photozhpc": __version__, "processor": processor()}
    document[args.what] = document.get(args.what, {}) | found
    RESULTS.write_text(json.dumps(document, indent=1) + "\n")
    print(json.dumps({args.what: {name: row["crps"] for name, row in found.items()}}))


if __name__ == "__main__":
    main()
