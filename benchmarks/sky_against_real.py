"""Are the redshifts of a simulated sky as uncertain as real ones? A forest on magnitudes alone.

    python benchmarks/sky_against_real.py --real FOLDER [--sky sky/realistic ...] [--wrong 0.08]

A simulated score is the mean over `--draws` draws of a sky.

FOLDER has candels_cosmos_{train,test}.txt: asinh magnitudes and errors in HST F606W, F814W, F125W
and F160W, and redshifts, of which 7 to 14% are wrong (its README). Simulated galaxies get the same
number, the same distribution of magnitudes in the reddest band, the same errors, and as many wrong
redshifts. The last line is JSON.
"""

from pathlib import Path

import numpy as np
from side_by_side import about, finish, parser
from sklearn.ensemble import ExtraTreesRegressor

from photozhpc.metrics import point_metrics
from photozhpc.sky import load_sky_config
from photozhpc.sky.population import SkyPhysics
from photozhpc.survey import ab_magnitude, load_survey

REAL_BANDS = ("F606W", "F814W", "F125W", "F160W")
ZERO_POINT_ERROR_MAG = 0.02
AREA_ARCMIN2 = 420.0


def real(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return magnitudes, their errors (N x C) and redshifts."""
    table = np.genfromtxt(path, names=True)
    mag_NC, err_NC = (
        np.stack([table[f"{kind}_{band}"] for band in REAL_BANDS], axis=1)
        for kind in ("lupt", "lupterr")
    )
    usable = np.isfinite(mag_NC).all(axis=1)
    return mag_NC[usable], err_NC[usable], table["z_spec"][usable]


def simulated(
    name: str, seed: int, like_mag_NC: np.ndarray, like_err_NC: np.ndarray, count: int, wrong: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return observed magnitudes and redshifts of `count` galaxies like the real ones."""
    bands = load_survey("roman-sim").band_names
    rng = np.random.default_rng(seed)
    config = load_sky_config(name)
    sources = SkyPhysics(bands, config).draw(rng, AREA_ARCMIN2)
    listed = ab_magnitude(sources.reference_njy_N) < config.catalogue_limit_ab
    sources = sources.take(np.flatnonzero(listed & ~sources.is_star_N))
    mag_NC = ab_magnitude(np.maximum(sources.flux_njy_NC, 1e-6))
    edges = np.arange(16.0, 26.1, 0.25)
    wanted, _ = np.histogram(like_mag_NC[:, -1], edges)
    bin_N = np.digitize(mag_NC[:, -1], edges) - 1
    chosen = [
        rng.permutation(np.flatnonzero(bin_N == k))[: round(n * count / len(like_mag_NC))]
        for k, n in enumerate(wanted)
    ]
    rows = rng.permutation(np.concatenate(chosen))
    mag_NC, z_N = mag_NC[rows], sources.z_N[rows]
    for c in range(len(bands)):
        order = np.argsort(like_mag_NC[:, c])
        at = np.searchsorted(like_mag_NC[order, c], mag_NC[:, c]) + rng.integers(-10, 11, len(rows))
        err_N = np.hypot(
            like_err_NC[order[np.clip(at, 0, len(order) - 1)], c], ZERO_POINT_ERROR_MAG
        )
        factor_N = 1.0 + rng.standard_normal(len(rows)) * err_N / 1.086
        mag_NC[:, c] -= 2.5 * np.log10(np.maximum(factor_N, 0.05))
    z_N = np.where(rng.random(len(rows)) < wrong, rng.permutation(z_N), z_N)
    return mag_NC, z_N


def score(mag_NC: np.ndarray, z_N: np.ndarray, n_train: int) -> dict[str, float]:
    features = np.column_stack([mag_NC[:, -1], mag_NC[:, :-1] - mag_NC[:, 1:]])
    forest = ExtraTreesRegressor(200, min_samples_leaf=2, random_state=0)
    forest.fit(features[:n_train], np.log1p(z_N[:n_train]))
    draws = [tree.predict(features[n_train:]) for tree in forest.estimators_]
    found = point_metrics(z_N[n_train:], np.expm1(np.median(draws, axis=0)))
    return {"nmad": found.nmad, "outliers": found.outlier_fraction, "bias": found.bias}


def main() -> None:
    options = parser(__doc__, rounds=None)
    options.add_argument("--real", type=Path, required=True)
    options.add_argument("--sky", nargs="+", default=["sky/simple", "sky/realistic"])
    options.add_argument("--wrong", type=float, default=0.08)
    options.add_argument("--draws", type=int, default=3)
    given = options.parse_args()
    train, test = (real(given.real / f"candels_cosmos_{kind}.txt") for kind in ("train", "test"))
    n_train, n = len(train[0]), len(train[0]) + len(test[0])
    both = [np.concatenate(pair) for pair in zip(train, test, strict=True)]
    results = about(
        "sky_against_real", "numpy scikit-learn galsim", train=n_train, test=n - n_train
    )
    results["real"] = score(both[0], both[2], n_train)
    for name in given.sky:
        for wrong in (0.0, given.wrong):
            rows = []
            for seed in range(given.draws):
                mag_NC, z_N = simulated(name, seed, train[0], train[1], n, wrong)
                rows.append(score(mag_NC, z_N, round(len(z_N) * n_train / n)))
            results[f"{name}, {wrong:.0%} wrong"] = {
                key: float(np.mean([row[key] for row in rows])) for key in rows[0]
            }
    for key, row in results.items():
        if isinstance(row, dict) and "nmad" in row:
            print(f"{key:28s} NMAD {row['nmad']:.4f}  outliers {row['outliers']:.1%}")
    finish(results, given.save)


if __name__ == "__main__":
    main()
