"""How much true structure would help a method that has all photometry of a store, and no pixels.

    python benchmarks/structure_limit.py --train STORE ... --test STORE ... --truth 'SKY/*truth*'

The opponent is an ExtraTrees density (the predictions of 300 trees) on dereddened asinh colours in
every aperture and the Kron ellipse. It learns the spectroscopic redshifts of the training stores,
wrong ones included, and is judged on the true redshifts of all galaxies of the test stores; as it
is, and with groups of true properties. The last line is JSON.
"""

import argparse
from glob import glob

import numpy as np
import pandas as pd
from side_by_side import about, finish, parser
from sklearn.ensemble import ExtraTreesRegressor

from photozhpc.metrics import point_metrics
from photozhpc.store import CutoutStore

SIZES = ["half_light_radius_arcsec"]
PROFILE = ["bulge_to_total_f062", "bulge_to_total_f158", "disk_axis_ratio", "bulge_axis_ratio"]
STRUCTURE = ["clumps", "spiral_arms"]


def read(paths: list[str], truth: pd.DataFrame) -> tuple[np.ndarray, pd.DataFrame]:
    """Return asinh colours and a magnitude of each aperture, and the truth with `z_spec`."""
    features, rows = [], []
    for path in paths:
        store = CutoutStore.open(path)
        r_C = np.array([band.extinction_r for band in store.survey.bands])
        for key in store.shards():
            sources, found = store.read_sources(key), store.read_measurements(key)
            gain_NC = 10.0 ** (0.4 * sources.ebv_N[:, None] * r_C)
            kron_NC1 = found.kron_flux_NC[..., None]
            flux_NCR = np.concatenate([found.flux_NCR, kron_NC1], axis=2) * gain_NC[..., None]
            features.append(flux_NCR)
            rows.append(truth.loc[sources.source_id_N].assign(z_spec=sources.z_spec_N))
    flux_NCR = np.nan_to_num(np.concatenate(features))
    soft = 15.0  # nJy, about the noise in 0.4"
    log_NCR = np.arcsinh(flux_NCR / (2.0 * soft)) / np.log(10.0)
    colour_NCR = log_NCR[:, :-1] - log_NCR[:, 1:]
    table = np.concatenate([colour_NCR, log_NCR[:, -1:]], axis=1)
    return table.reshape(len(table), -1).astype(np.float32), pd.concat(rows)


def crps(draw_NT: np.ndarray, z_N: np.ndarray) -> float:
    """Mean continuous ranked probability score of samples, E|x - z| - E|x - x'| / 2."""
    ordered_NT = np.sort(draw_NT, axis=1)
    n = ordered_NT.shape[1]
    spread_N = (ordered_NT * (2 * np.arange(n) - n + 1)).sum(axis=1) / n**2
    return float(np.mean(np.abs(draw_NT - z_N[:, None]).mean(axis=1) - spread_N))


def evaluate(train: np.ndarray, z_train: np.ndarray, test: np.ndarray, z_N: np.ndarray) -> dict:
    forest = ExtraTreesRegressor(300, min_samples_leaf=2, max_features=0.5, random_state=0)
    forest.fit(train, np.log1p(z_train))
    draw_NT = np.expm1(np.stack([tree.predict(test) for tree in forest.estimators_], axis=1))
    found = point_metrics(z_N, np.median(draw_NT, axis=1))
    return {
        "nmad": found.nmad,
        "outliers": found.outlier_fraction,
        "bias": found.bias,
        "crps": crps(draw_NT, z_N),
    }


def options() -> argparse.Namespace:
    given = parser(__doc__, rounds=None)
    given.add_argument("--train", nargs="+", required=True)
    given.add_argument("--test", nargs="+", required=True)
    given.add_argument("--truth", required=True)
    given.add_argument(
        "--labels", type=int, default=6000, help="at most so many; 0: all true redshifts instead"
    )
    return given.parse_args()


def main() -> None:
    given = options()
    truth = pd.concat(map(pd.read_parquet, glob(given.truth))).set_index("source_id")
    train_NF, train = read(given.train, truth)
    test_NF, test = read(given.test, truth)
    if given.labels == 0:
        train = train.assign(z_spec=train.z_true.where(~train.is_star), z_spec_is_wrong=False)
    labelled = np.random.default_rng(0).permutation(np.flatnonzero(train.z_spec.notna()))
    chosen = labelled[: given.labels or None]
    galaxy = ~test.is_star.to_numpy()
    z_N = test.z_true.to_numpy(float)[galaxy]
    results = about("structure_limit", "numpy scikit-learn galsim") | {
        "labels": len(chosen),
        "galaxies": int(galaxy.sum()),
    }
    if "z_spec_is_wrong" in train:
        results["wrong_labels"] = float(train.z_spec_is_wrong.iloc[chosen].mean())
    groups = {
        "photometry": [],
        "and size": SIZES,
        "and profile": SIZES + PROFILE,
        "and clumps and arms": SIZES + PROFILE + STRUCTURE,
        "clumps and arms alone": STRUCTURE,
    }
    for name, columns in groups.items():
        if not set(columns) <= set(train):
            continue
        with_truth = [
            np.column_stack([x_NF, *(np.nan_to_num(rows[c]) for c in columns)])
            for x_NF, rows in ((train_NF, train), (test_NF, test))
        ]
        row = evaluate(
            with_truth[0][chosen], train.z_spec.to_numpy(float)[chosen], with_truth[1][galaxy], z_N
        )
        results[name] = row
        print(
            f"{name:24s} NMAD {row['nmad']:.4f}  outliers {row['outliers']:.1%}  "
            f"CRPS {row['crps']:.4f}  bias {row['bias']:+.4f}"
        )
    finish(results, given.save, "structure_limit" if given.labels else "structure_limit_all_labels")


if __name__ == "__main__":
    main()
