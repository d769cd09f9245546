"""How smoothly redshift varies in a latent space, and the UMAP of that space.

The paper (arXiv 2602.10207, figures 4 and 6) shows that redshift varies smoothly in PITA's latents
and not in a self-supervised model's. Where it does, the neighbours of a source predict its
redshift.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from photozhpc.errors import ConfigError
from photozhpc.metrics import normalised_residual, point_metrics

N_NEIGHBOURS = 10
_UMAP_NEIGHBOURS = 15


@dataclass(frozen=True)
class Smoothness:
    """Errors of redshifts predicted from neighbours.

    Attributes:
        nmad, rms: of dz = (z_ref - z) / (1 + z_ref).
        nmad_shuffled, rms_shuffled: with shuffled redshifts, as in a space without information on
            redshift.
        n: sources with a reference redshift.
    """

    nmad: float
    rms: float
    nmad_shuffled: float
    rms_shuffled: float
    n: int


def smoothness(
    latent_ND: NDArray, z_ref_N: NDArray, k: int = N_NEIGHBOURS, seed: int = 0
) -> Smoothness:
    """Return the errors of leave-one-out k-nearest-neighbour redshifts.

    A source's redshift is predicted by the mean ln(1+z) of its k nearest other sources in the
    standardised latents. Sources without a reference redshift are left out.

    Args:
        seed: of the shuffle.

    Raises:
        ConfigError: scikit-learn is missing.
        ValueError: no more than k sources have a reference redshift.
    """
    has_z_N = np.isfinite(z_ref_N)
    z_N = np.asarray(z_ref_N, dtype=np.float64)[has_z_N]
    neighbour_NK = neighbours(standardise(latent_ND[has_z_N]), k)

    def errors(z_N: NDArray) -> tuple[float, float]:
        return nmad_and_rms(z_N, np.expm1(np.log1p(z_N)[neighbour_NK].mean(axis=1)))

    shuffled_N = np.random.default_rng(seed).permutation(z_N)
    return Smoothness(*errors(z_N), *errors(shuffled_N), n=len(z_N))


def neighbours(point_ND: NDArray, k: int) -> NDArray[np.intp]:
    """Return neighbour_NK, the k nearest other points of each point (Euclidean).

    Raises:
        ConfigError: scikit-learn, which comes with umap-learn, is missing.
        ValueError: there are no more than k points.
    """
    try:
        from sklearn.neighbors import NearestNeighbors
    except ImportError as error:
        raise _missing("scikit-learn") from error
    # Without a query, kneighbors leaves out each point itself, also among duplicates.
    return NearestNeighbors(n_neighbors=k).fit(point_ND).kneighbors(return_distance=False)


def standardise(latent_ND: NDArray) -> NDArray[np.float64]:
    """Return each dimension with mean 0 and standard deviation 1; constant ones as 0."""
    centred_ND = latent_ND - latent_ND.mean(axis=0, dtype=np.float64)
    std_D = centred_ND.std(axis=0)
    return centred_ND / np.where(std_D > 0, std_D, 1)


def embed(latent_ND: NDArray, seed: int) -> NDArray[np.float32]:
    """Return plane_N2, the UMAP (McInnes et al. 2018) of the standardised latents.

    Raises:
        ConfigError: umap-learn is missing.
    """
    umap = import_umap()
    # With a seed UMAP uses one thread; without n_jobs=1 it would warn about that.
    n_neighbours = min(_UMAP_NEIGHBOURS, len(latent_ND) - 1)
    reducer = umap.UMAP(n_neighbors=n_neighbours, random_state=seed, n_jobs=1)
    return np.asarray(reducer.fit_transform(standardise(latent_ND)), dtype=np.float32)


def import_umap() -> Any:
    """Return the module umap; it takes seconds to import.

    Raises:
        ConfigError: umap-learn is missing.
    """
    try:
        import umap
    except ImportError as error:
        raise _missing("umap-learn") from error
    return umap


def nmad_and_rms(z_ref_N: NDArray, z_N: NDArray) -> tuple[float, float]:
    """Return the NMAD and the root mean square of dz; pairs with a NaN are left out."""
    dz_N = normalised_residual(z_ref_N, z_N)
    return point_metrics(z_ref_N, z_N).nmad, float(np.sqrt(np.nanmean(dz_N**2)))


def _missing(package: str) -> ConfigError:
    return ConfigError(
        f"figures of latents need {package}, which is not installed: pip install photozhpc[figures]"
    )
