"""The level of a density at which to read a quantile, so that its coverage is right: plain NumPy.

Two steps, each with its own labels:

- A smooth map of the probability integral transform (PIT), as in Cal-PIT (Dey et al. 2022,
  arXiv 2205.14568), of only four numbers: in probits it is shifted and stretched, both linearly in
  brightness. It extrapolates to sources that are fainter than the labels.
- Split-conformal quantiles of the mapped PIT (Chernozhukov, Wuethrich & Zhu 2021, PNAS 118,
  e2107794118) among the labels of similar brightness, weighted against the labels' selection
  (Tibshirani et al. 2019, arXiv 1904.06019).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri

# A quantile is measured among this many labels of similar brightness, or this share of all, or as
# many as are needed to have TAIL_LABELS beyond it, whichever is most.
WINDOW_LABELS = 600
WINDOW_SHARE = 1 / 12
TAIL_LABELS = 10
# Prior of the map's four numbers, in probits: with few labels it stays near the identity.
MAP_SIGMA = 0.5
_EDGE = 1e-6


@dataclass(frozen=True)
class Labels:
    """Labelled sources as the calibration sees them.

    Attributes:
        pit_N: cumulative probability at the true redshift, by the raw density.
        brightness_N: `PITA.brightness`, or another increasing function of brightness.
        weight_N: how many sources of the survey each represents, up to a factor.
    """

    pit_N: NDArray[np.float64]
    brightness_N: NDArray[np.float64]
    weight_N: NDArray[np.float64]

    def take(self, rows_N: NDArray) -> "Labels":
        return Labels(self.pit_N[rows_N], self.brightness_N[rows_N], self.weight_N[rows_N])


@dataclass(frozen=True)
class SmoothMap:
    """PIT -> Phi(shift(b) + exp(stretch(b)) Phi^-1(PIT)), both linear in brightness b.

    Attributes:
        shift, stretch: value at the centre, and slope per `scale`.
    """

    centre: float
    scale: float
    shift: tuple[float, float]
    stretch: tuple[float, float]

    def apply(self, pit_N: NDArray, brightness_N: NDArray) -> NDArray[np.float64]:
        """Return the mapped PIT."""
        shift_N, gain_N = self._at(brightness_N)
        return ndtr(shift_N + gain_N * ndtri(pit_N))

    def invert(self, level_N: NDArray, brightness_N: NDArray) -> NDArray[np.float64]:
        """Return the level of the raw density whose mapped PIT is `level_N`."""
        shift_N, gain_N = self._at(brightness_N)
        return ndtr((ndtri(level_N) - shift_N) / gain_N)

    def _at(self, brightness_N: NDArray) -> tuple[NDArray, NDArray]:
        t_N = (brightness_N - self.centre) / self.scale
        return (
            self.shift[0] + self.shift[1] * t_N,
            np.exp(self.stretch[0] + self.stretch[1] * t_N),
        )


def fit_smooth_map(labels: Labels) -> SmoothMap:
    """Return the map that makes the PIT most uniform: of highest weighted likelihood and prior."""
    weight_N = labels.weight_N / labels.weight_N.sum()
    centre = float(weight_N @ labels.brightness_N)
    scale = float(np.sqrt(weight_N @ (labels.brightness_N - centre) ** 2)) or 1.0
    t_N = (labels.brightness_N - centre) / scale
    probit_N = ndtri(np.clip(labels.pit_N, _EDGE, 1 - _EDGE))
    prior = 1 / (effective_number(labels.weight_N) * MAP_SIGMA**2)

    def loss(four: NDArray) -> tuple[float, NDArray]:
        log_gain_N = four[2] + four[3] * t_N
        stretched_N = np.exp(log_gain_N) * probit_N
        mapped_N = four[0] + four[1] * t_N + stretched_N
        value = weight_N @ (mapped_N**2 / 2 - log_gain_N) + prior * (four @ four) / 2
        by_shift_N = weight_N * mapped_N
        by_gain_N = weight_N * (mapped_N * stretched_N - 1)
        slope = [by_shift_N.sum(), by_shift_N @ t_N, by_gain_N.sum(), by_gain_N @ t_N]
        return float(value), np.array(slope) + prior * four

    from scipy.optimize import minimize  # slow to import

    fitted = minimize(loss, np.zeros(4), jac=True, method="BFGS").x
    return SmoothMap(centre, scale, (fitted[0], fitted[1]), (fitted[2], fitted[3]))


def level_table(
    shape: Labels, conformal: Labels, knot_G: NDArray, level_Q: tuple[float, ...]
) -> NDArray[np.float64]:
    """Return level_GQ of the raw density at which to read the quantiles, at brightnesses knot_G.

    Args:
        shape: labels that the smooth map is fitted to.
        conformal: others, for the quantiles of the mapped PIT.
        level_Q: nominal probabilities, ascending.
    """
    smooth = fit_smooth_map(shape)
    mapped = Labels(
        smooth.apply(conformal.pit_N, conformal.brightness_N),
        conformal.brightness_N,
        conformal.weight_N,
    )
    level_GQ = np.array([[conformal_level(mapped, b, level) for level in level_Q] for b in knot_G])
    # Each level has its own window; make outer intervals contain the inner ones.
    lower = np.flatnonzero(np.array(level_Q) <= 0.5)[::-1]
    upper = np.flatnonzero(np.array(level_Q) >= 0.5)
    level_GQ[:, lower] = np.minimum.accumulate(level_GQ[:, lower], axis=1)
    level_GQ[:, upper] = np.maximum.accumulate(level_GQ[:, upper], axis=1)
    return smooth.invert(level_GQ, knot_G[:, None])


def conformal_level(labels: Labels, brightness: float, level: float) -> float:
    """Return the PIT with probability `level` below it, among the labels nearest in brightness.

    It is conservative: a new source, with the mean weight, is counted on the far side of it. With
    too few labels for the level it is 0 or 1: the whole range of redshifts.
    """
    tail_labels = TAIL_LABELS / min(level, 1 - level)
    n = round(max(WINDOW_LABELS, WINDOW_SHARE * len(labels.pit_N), tail_labels))
    near_N = np.argsort(np.abs(labels.brightness_N - brightness), kind="stable")[:n]
    pit_N, weight_N = labels.pit_N[near_N], labels.weight_N[near_N]
    if level < 0.5:
        return 1 - _upper_level(1 - pit_N, weight_N, 1 - level)
    return _upper_level(pit_N, weight_N, level)


def _upper_level(pit_N: NDArray, weight_N: NDArray, level: float) -> float:
    order_N = np.argsort(pit_N)
    share_N = np.cumsum(weight_N[order_N]) / (weight_N.sum() + weight_N.mean())
    first = int(np.searchsorted(share_N, level))
    return float(pit_N[order_N[first]]) if first < len(order_N) else 1.0


def effective_number(weight_N: NDArray) -> float:
    """Return Kish's effective number of weighted sources, (sum w)^2 / sum w^2."""
    return float(weight_N.sum() ** 2 / (weight_N**2).sum())
