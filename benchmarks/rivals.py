"""Estimators of redshift densities from a catalogue: what our models are compared with.

Each takes features of labelled and of new galaxies, and returns densities of the new ones on one
grid of bins. Those with settings are tuned on the labels alone: every setting of a small grid is
scored by the CRPS in cross-validation, and the best is fitted to all labels. Each reports the
better of two point estimates, the median and `density.least_risk`, chosen in the same way.

FlexZBoost needs the packages flexcode and xgboost, the template fit needs eazy (extra "bench").
"""

import itertools
import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from sklearn.ensemble import ExtraTreesRegressor, HistGradientBoostingRegressor
from sklearn.neighbors import NearestNeighbors

from photozhpc.metrics import ks_uniform, point_metrics
from photozhpc.model.density import LEVEL_Q, cdf_at, cumulative, inverse_cdf, least_risk
from photozhpc.model.density_fit import smoothed
from photozhpc.model.redshift_grid import grid_cells

N_FOLDS = 3  # of the tuning
# Density of galaxies z from features x_out, of a model fitted to x, z; `seed` and settings follow.
Fit = Callable[..., NDArray[np.float32]]


@dataclass(frozen=True)
class Grid:
    """Bins of a density, equally wide in ln(1+z)."""

    n_bins: int
    z_max: float

    @property
    def edge_E(self) -> NDArray[np.float64]:
        return np.expm1(np.linspace(0, math.log1p(self.z_max), self.n_bins + 1))

    def position(self, z_N: NDArray) -> torch.Tensor:
        position_N = np.log1p(np.asarray(z_N, np.float64)) / math.log1p(self.z_max)
        return torch.from_numpy(position_N.clip(0, 1)).float()

    def kernels(self, z_N: NDArray, width: float) -> NDArray[np.float32]:
        """Return density_NK: a Gaussian of this width in ln(1+z) about each redshift."""
        return smoothed(
            self.position(z_N), self.n_bins, width / math.log1p(self.z_max)
        ).numpy()  # fmt: skip

    def median(self, density_NK: NDArray) -> NDArray[np.float64]:
        cdf_NE = cumulative(torch.from_numpy(density_NK))
        half_N1 = torch.full((len(density_NK), 1), 0.5)
        return np.expm1(inverse_cdf(cdf_NE, half_N1).squeeze(1).numpy() * math.log1p(self.z_max))

    def least_risk(self, density_NK: NDArray) -> NDArray[np.float64]:
        return least_risk(torch.from_numpy(density_NK), self.z_max).double().numpy()

    def crps(self, density_NK: NDArray, z_N: NDArray) -> NDArray[np.float64]:
        """Return the CRPS in redshift of each galaxy, integrated over the grid's edges."""
        cdf_NE = cumulative(torch.from_numpy(density_NK)).double().numpy()
        square_NE = (cdf_NE - (self.edge_E >= z_N[:, None])) ** 2
        return ((square_NE[:, 1:] + square_NE[:, :-1]) / 2 * np.diff(self.edge_E)).sum(axis=1)

    def pit(self, density_NK: NDArray, z_N: NDArray) -> NDArray[np.float64]:
        cdf_NE = cumulative(torch.from_numpy(density_NK))
        return cdf_at(cdf_NE, self.position(z_N)).double().numpy()


@dataclass(frozen=True)
class Rival:
    """An estimator and the settings that it is tuned over.

    Attributes:
        settings: values by name; all their combinations are tried.
    """

    fit: Fit
    settings: dict[str, list[Any]] = field(default_factory=dict)


@dataclass
class Result:
    """Densities and redshifts of new galaxies, and how they were made.

    Attributes:
        labels_NK: densities of the labels in cross-validation; empty: there are none.
        settings: what was chosen, and other facts.
        quantile_MQ: calibrated quantiles at LEVEL_Q; empty: those of the densities.
    """

    density_MK: NDArray[np.float32]
    z_phot_M: NDArray[np.float64]
    labels_NK: NDArray[np.float32]
    settings: dict[str, Any]
    cpu_seconds: float
    quantile_MQ: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))

    def write(self, path: Path) -> None:
        """Write it, densities as float16."""
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}")
        np.savez_compressed(
            part,
            density_MK=self.density_MK.astype(np.float16),
            z_phot_M=self.z_phot_M,
            labels_NK=self.labels_NK.astype(np.float16),
            quantile_MQ=self.quantile_MQ,
            facts=json.dumps([self.settings, self.cpu_seconds]),
        )
        os.replace(part, path)

    @staticmethod
    def read(path: Path) -> "Result":
        with np.load(path) as file:
            settings, seconds = json.loads(str(file["facts"]))
            density_MK, labels_NK = (
                file[name].astype(np.float32) for name in ("density_MK", "labels_NK")
            )
            z_phot_M, quantile_MQ = file["z_phot_M"], file["quantile_MQ"]
        return Result(density_MK, z_phot_M, labels_NK, settings, seconds, quantile_MQ)


def kept(path: Path, make: Callable[[], Result]) -> Result:
    """Return a result that was written to `path`, or make and write it."""
    if not path.exists():
        make().write(path)
    return Result.read(path)  # also of a new one: as another run will read it


def chosen(
    trials: list[tuple[dict[str, Any], NDArray, Callable[[], NDArray]]],
    z_N: NDArray,
    grid: Grid,
    started: float,
) -> Result:
    """Return the densities of the setting with the best CRPS of the labels.

    Args:
        trials: settings, cross-validated densities of the labels, and what gives those of the new
            galaxies.
        started: process time.
    """
    settings, labels_NK, predict = min(trials, key=lambda t: grid.crps(t[1], z_N).mean())
    density_MK = predict()
    estimate = better_estimate(labels_NK, z_N, grid)
    z_phot_M = getattr(grid, estimate)(density_MK)
    facts = settings | {"estimate": estimate}
    return Result(density_MK, z_phot_M, labels_NK, facts, time.process_time() - started)


def tuned(
    rival: Rival, x_NF: NDArray, z_N: NDArray, x_MF: NDArray, grid: Grid, seed: int
) -> Result:
    """Tune a rival on labels by cross-validation; return its densities of new galaxies."""
    started = time.process_time()
    fold_N = np.random.default_rng(seed).permutation(len(z_N)) % N_FOLDS
    trials = []
    for values in itertools.product(*rival.settings.values()):
        settings = dict(zip(rival.settings, values, strict=True))
        density_NK = cross_validated(rival.fit, x_NF, z_N, fold_N, grid, seed, settings)

        def predict(settings: dict[str, Any] = settings) -> NDArray:
            return rival.fit(x_NF, z_N, x_MF, grid, seed, **settings)

        trials.append((settings, density_NK, predict))
    return chosen(trials, z_N, grid, started)


def cross_validated(
    fit: Fit,
    x_NF: NDArray,
    z_N: NDArray,
    fold_N: NDArray,
    grid: Grid,
    seed: int,
    settings: dict[str, Any],
) -> NDArray[np.float32]:
    """Return densities of the labels, each by a fit to the other folds."""
    density_NK = np.empty((len(z_N), grid.n_bins), np.float32)
    for fold in np.unique(fold_N):
        own_N = fold_N == fold
        density_NK[own_N] = fit(x_NF[~own_N], z_N[~own_N], x_NF[own_N], grid, seed, **settings)
    return density_NK


def better_estimate(density_NK: NDArray, z_N: NDArray, grid: Grid) -> str:
    """Return the point estimate with the smaller product of NMAD and outliers."""

    def badness(name: str) -> float:
        metrics = point_metrics(z_N, getattr(grid, name)(density_NK))
        return metrics.nmad * metrics.outlier_fraction

    return min(("median", "least_risk"), key=badness)


def _statistics(
    grid: Grid, result: Result, z_M: NDArray
) -> Callable[[NDArray | slice], dict[str, float]]:
    """Return a function of rows: the statistics of a result on them."""
    pit_M, crps_M = grid.pit(result.density_MK, z_M), grid.crps(result.density_MK, z_M)
    quantile_MQ = result.quantile_MQ
    inside = {}
    for percent, low in ((68, 0.16), (90, 0.05), (99, 0.005)):
        if quantile_MQ.size:
            low_M, high_M = (quantile_MQ[:, LEVEL_Q.index(level)] for level in (low, 1 - low))
            inside[percent] = (low_M <= z_M) & (z_M <= high_M)
        else:
            inside[percent] = (pit_M > low) & (pit_M < 1 - low)

    def of(rows: NDArray | slice) -> dict[str, float]:
        metrics = point_metrics(z_M[rows], result.z_phot_M[rows])
        return {
            "nmad": metrics.nmad,
            "outliers_percent": 100 * metrics.outlier_fraction,
            "bias": metrics.bias,
            "crps": float(crps_M[rows].mean()),
            **{f"coverage_{p}": 100 * float(in_M[rows].mean()) for p, in_M in inside.items()},
            "pit_ks": float(ks_uniform(pit_M[rows])),
        }

    return of


def draws(n: int, n_resamples: int = 300) -> list[NDArray]:
    """Return the rows of bootstrap resamples of n galaxies: the same for every method."""
    rng = np.random.default_rng(0)
    return [rng.integers(n, size=n) for _ in range(n_resamples)]


def scores(grid: Grid, result: Result, z_M: NDArray) -> dict[str, Any]:
    """Return the statistics of a table's row, with bootstrap errors."""
    of = _statistics(grid, result, z_M)
    drawn = [of(rows) for rows in draws(len(z_M))]
    errors = {f"{name}_err": float(np.std([draw[name] for draw in drawn])) for name in drawn[0]}
    return of(slice(None)) | errors


PAIRED = ("nmad", "outliers_percent", "crps")


def paired(
    grid: Grid, results: list[Result], ours: list[Result], z_M: NDArray
) -> dict[str, dict[str, float]]:
    """Return how much larger PAIRED are of results than of ours, on the same galaxies.

    Args:
        results, ours: of several seeds, over which the differences are averaged.

    Returns:
        For each statistic, `difference`, its bootstrap error `error`, and `better_percent`: the
        share of resamples in which ours is smaller.
    """
    pairs = [
        (_statistics(grid, a, z_M), _statistics(grid, b, z_M))
        for a, b in zip(results, ours, strict=True)
    ]

    def difference(rows: NDArray | slice) -> list[float]:
        both = [(a(rows), b(rows)) for a, b in pairs]
        return [float(np.mean([a[name] - b[name] for a, b in both])) for name in PAIRED]

    value_S, draw_DS = difference(slice(None)), np.array([difference(r) for r in draws(len(z_M))])
    return {
        name: {
            "difference": value_S[i],
            "error": float(draw_DS[:, i].std()),
            "better_percent": 100 * float((draw_DS[:, i] > 0).mean()),
        }
        for i, name in enumerate(PAIRED)
    }


def on_grid(grid: Grid, pdf_NP: NDArray, z_P: NDArray) -> NDArray[np.float32]:
    """Return density_NK of p(z) that an engine gives with `pdf="grid"`."""
    border_E = grid_cells(z_P)
    cdf_NE = np.pad((pdf_NP * np.diff(border_E)).cumsum(axis=1), ((0, 0), (1, 0)))
    cdf_NE = np.array([np.interp(grid.edge_E, border_E, cdf_E / cdf_E[-1]) for cdf_E in cdf_NE])
    return np.diff(cdf_NE, axis=1).astype(np.float32)


def geometric_mean(parts: list[NDArray], weights: list[float]) -> NDArray[np.float32]:
    """Return the normalised product of densities, each to the power of its weight."""
    n_bins = parts[0].shape[1]
    log_NK = sum(w * np.log(0.999 * p + 1e-3 / n_bins) for w, p in zip(weights, parts, strict=True))
    density_NK = np.exp(log_NK - log_NK.max(axis=1, keepdims=True))
    return (density_NK / density_NK.sum(axis=1, keepdims=True)).astype(np.float32)


def stacked(a: Result, b: Result, z_N: NDArray, grid: Grid) -> Result:
    """Return the weighted geometric mean of two results; the labels choose the weight."""
    trials = []
    for share in np.linspace(0, 1, 11).round(1).tolist():
        weights = [share, 1 - share]

        def predict(weights: list[float] = weights) -> NDArray:
            return geometric_mean([a.density_MK, b.density_MK], weights)

        labels_NK = geometric_mean([a.labels_NK, b.labels_NK], weights)
        trials.append(({"share": share}, labels_NK, predict))
    result = chosen(trials, z_N, grid, time.process_time())
    result.cpu_seconds += a.cpu_seconds + b.cpu_seconds
    return result


# ---- the estimators: fit(x_NF, z_N, x_MF, grid, seed, **settings) -> density_MK


def extra_trees(
    x_NF: NDArray, z_N: NDArray, x_MF: NDArray, grid: Grid, seed: int, *,
    leaf: int = 3, max_features: float = 0.5, trees: int = 300, width: float = 0.02,
) -> NDArray[np.float32]:  # fmt: skip
    """The labels in the same leaves of extremely random trees (Geurts et al. 2006)."""
    forest = ExtraTreesRegressor(
        trees, min_samples_leaf=leaf, max_features=max_features, random_state=seed, n_jobs=1
    )
    forest.fit(x_NF, np.log1p(z_N))
    here_NT, there_MT = forest.apply(x_NF), forest.apply(x_MF)
    kernel_NK = grid.kernels(z_N, width)
    total_MK = np.zeros((len(x_MF), grid.n_bins), np.float32)
    for t in range(trees):
        shape = (here_NT[:, t].max() + 1, len(x_NF))
        member = csr_matrix(
            (np.ones(len(x_NF), np.float32), (here_NT[:, t], np.arange(len(x_NF)))), shape=shape
        )
        n_L = np.asarray(member.sum(axis=1)).ravel().clip(1)
        total_MK += ((member @ kernel_NK) / n_L[:, None])[there_MT[:, t]]
    return total_MK / trees


def nearest_neighbours(
    x_NF: NDArray, z_N: NDArray, x_MF: NDArray, grid: Grid, seed: int, *,
    k: int = 20, width: float = 0.02,
) -> NDArray[np.float32]:  # fmt: skip
    """The labels of the k nearest galaxies in scaled features, weighted by inverse distance."""
    mean_F, std_F = x_NF.mean(axis=0), x_NF.std(axis=0).clip(1e-6)
    tree = NearestNeighbors(n_neighbors=min(k, len(x_NF))).fit((x_NF - mean_F) / std_F)
    distance_MJ, index_MJ = tree.kneighbors((x_MF - mean_F) / std_F)
    weight_MJ = 1 / (distance_MJ + 1e-3)
    weight_MJ /= weight_MJ.sum(axis=1, keepdims=True)
    kernel_NK = grid.kernels(z_N, width)
    density_MK = np.zeros((len(x_MF), grid.n_bins), np.float32)
    for j in range(index_MJ.shape[1]):
        density_MK += weight_MJ[:, j, None].astype(np.float32) * kernel_NK[index_MJ[:, j]]
    return density_MK


def gradient_boosting(
    x_NF: NDArray, z_N: NDArray, x_MF: NDArray, grid: Grid, seed: int, *,
    learning_rate: float = 0.05, leaves: int = 15, width: float = 0.02,
) -> NDArray[np.float32]:  # fmt: skip
    """Boosted trees of ln(1+z), with the errors of the labels of similar estimates.

    The density is made of the cross-validated errors of the 200 labels with the nearest estimates.
    """

    def fitted(rows_N: NDArray) -> HistGradientBoostingRegressor:
        return HistGradientBoostingRegressor(
            loss="absolute_error", learning_rate=learning_rate, max_leaf_nodes=leaves,
            max_iter=300, early_stopping=True, random_state=seed,
        ).fit(x_NF[rows_N], np.log1p(z_N[rows_N]))  # fmt: skip

    fold_N = np.random.default_rng(seed + 1).permutation(len(z_N)) % N_FOLDS
    estimate_N = np.empty(len(z_N))
    for fold in range(N_FOLDS):
        own_N = fold_N == fold
        estimate_N[own_N] = fitted(~own_N).predict(x_NF[own_N])
    error_N = np.log1p(z_N) - estimate_N
    estimate_M = fitted(np.ones(len(z_N), bool)).predict(x_MF)
    k = min(200, len(z_N))
    near = NearestNeighbors(n_neighbors=k).fit(estimate_N[:, None])
    _, index_MJ = near.kneighbors(estimate_M[:, None])
    density_MK = np.zeros((len(x_MF), grid.n_bins), np.float32)
    for j in range(k):
        z_M = np.expm1((estimate_M + error_N[index_MJ[:, j]]).clip(0))
        density_MK += grid.kernels(z_M, width) / k
    return density_MK


def flexzboost(
    x_NF: NDArray, z_N: NDArray, x_MF: NDArray, grid: Grid, seed: int, *, max_depth: int = 8
) -> NDArray[np.float32]:
    """FlexZBoost (Izbicki & Lee 2017; Schmidt et al. 2020), step by step as RAIL's stage has it.

    pz-rail-flexzboost 2.0.3, with its defaults: 35 cosine bases; a quarter of the labels chooses
    them, then the bump threshold, then the sharpening; then it is fitted to all.
    """
    from flexcode import FlexCodeModel
    from flexcode.loss_functions import cde_loss
    from flexcode.regression_models import XGBoost

    order_N = np.random.default_rng(seed).permutation(len(z_N))
    fit_N, check_N = np.split(order_N, [int(0.75 * len(z_N))])
    parameters = {"max_depth": max_depth, "objective": "reg:squarederror", "n_jobs": 1}
    model = FlexCodeModel(
        XGBoost, 35, "cosine", z_min=0.0, z_max=float(grid.z_max), regression_params=parameters
    )
    model.fit(x_NF[fit_N], z_N[fit_N])
    model.tune(x_NF[check_N], z_N[check_N])
    trials = {
        "bump_threshold": np.linspace(0.02, 0.35, 20),
        "sharpen_alpha": np.linspace(0.7, 2.1, 15),
    }
    for name, values in trials.items():
        losses = []
        for value in values:
            setattr(model, name, value)
            density_MP, z_P = model.predict(x_NF[check_N], n_grid=301)
            losses.append(cde_loss(density_MP, z_P, z_N[check_N]))
        setattr(model, name, values[int(np.argmin(losses))])
    model.fit(x_NF, z_N)
    density_MP, z_P1 = model.predict(x_MF, n_grid=1001)
    z_P = np.asarray(z_P1).ravel()
    cdf_MP = np.cumsum(density_MP, axis=1)
    cdf_MP /= cdf_MP[:, -1:].clip(1e-12)
    edge_P = z_P + np.gradient(z_P) / 2
    cdf_ME = np.array([np.interp(grid.edge_E, edge_P, cdf_P, left=0, right=1) for cdf_P in cdf_MP])
    return np.diff(cdf_ME, axis=1).clip(0).astype(np.float32)


RIVALS = {
    "ExtraTrees density": Rival(extra_trees, {"leaf": [3, 6], "max_features": [0.5, 1.0]}),
    "kNN density": Rival(nearest_neighbours, {"k": [10, 20, 40], "width": [0.01, 0.03]}),
    "gradient boosting": Rival(
        gradient_boosting, {"learning_rate": [0.03, 0.1], "leaves": [7, 31]}
    ),
    "FlexZBoost": Rival(flexzboost, {"max_depth": [4, 8]}),
}
