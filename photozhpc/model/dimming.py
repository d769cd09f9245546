"""Views of a galaxy as it would look if it were fainter: the labels are bright, the sky is not.

A galaxy with a spectroscopic redshift, made fainter by some tenths of a magnitude and given the
noise that its image then lacks, is a labelled galaxy of a fainter magnitude. (Boone 2019, arXiv
1907.04690, section 2.3, does so with supernovae.)
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def draw_factors(n: int, mean_mag: float, generator: torch.Generator) -> Tensor:
    """Return factor_N, 0 to 1, of magnitudes that are exponentially distributed about a mean."""
    uniform_N = torch.rand(n, generator=generator, device=generator.device)
    return torch.pow(10.0, 0.4 * mean_mag * torch.log1p(-uniform_N))


def noise_to_add(factor_N: Tensor) -> Tensor:
    """Return the standard deviation of the noise that a dimmed image lacks, in units of its own."""
    return torch.sqrt(1 - factor_N**2)


def dimmed_fluxes(
    flux_NCR: Tensor,
    flux_err_NCR: Tensor,
    factor_N: Tensor,
    generators: Sequence[torch.Generator],
) -> Tensor:
    """Return the fluxes made fainter, with noise added so that their errors are what they were.

    Apertures contain one another: what a larger error adds to a smaller one is independent of it,
    and the rest is the same noise. A flux without an error gets no noise.

    Args:
        flux_NCR, flux_err_NCR: nJy; not finite where not measured.
        factor_N: of the fluxes, 0 to 1.
        generators: on the fluxes' device; each draws for an equal share of the sources, in order.
    """
    factor_N11 = factor_N[:, None, None]
    lacking_NCR = (flux_err_NCR * noise_to_add(factor_N11)).nan_to_num(0.0, 0.0, 0.0)
    ascending_NCR, order_NCR = lacking_NCR.sort(dim=2)
    variance_NCR = ascending_NCR.square().diff(
        dim=2, prepend=torch.zeros_like(lacking_NCR[..., :1])
    )
    shape = (len(flux_NCR) // len(generators), *flux_NCR.shape[1:])
    normal_NCR = torch.cat(
        [torch.randn(shape, generator=each, device=flux_NCR.device) for each in generators]
    )
    noise_NCR = (normal_NCR * variance_NCR.clamp(min=0).sqrt()).cumsum(dim=2)
    return flux_NCR * factor_N11 + torch.zeros_like(flux_NCR).scatter(2, order_NCR, noise_NCR)
