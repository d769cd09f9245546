"""The forward pass of inference: device, precision and memory layout."""

import math
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from photozhpc.errors import CheckpointError, ConfigError
from photozhpc.model.augment import prepare
from photozhpc.model.checkpoint import Checkpoint
from photozhpc.model.density import LEVEL_Q
from photozhpc.model.photometry_mlp import PhotometryMLP
from photozhpc.model.pita import Estimate
from photozhpc.survey import Survey

MIN_FINITE_FRACTION = 0.5


class Prediction(NamedTuple):
    """What inference says of N cutouts; NaN where a cutout cannot be used.

    Attributes:
        z_phot_N: redshift.
        quantile_NQ: calibrated quantiles at density.LEVEL_Q (central 99, 90 and 68% from the
            outside in); NaN from a model without density heads.
        ood_N: distance to the training images in latent space, 1: as far out as 1% of them;
            NaN from a model without density heads.
    """

    z_phot_N: NDArray[np.float32]
    quantile_NQ: NDArray[np.float32]
    ood_N: NDArray[np.float32]


class Engine:
    """A checkpoint on a device, ready to turn cutouts into redshifts.

    Args:
        checkpoint: from `load_checkpoint`.
        device: "cpu", "cuda" or "cuda:N".
        batch_size: images in one forward pass.
        precision: torch.bfloat16 or torch.float32 for the network; default: bfloat16 where the
            device computes it natively. The heads' outputs are float32 always.

    Attributes:
        side_pix: side of the part of a cutout that the model sees.

    Raises:
        ConfigError: the device is not there.
        CheckpointError: it is of a photometry-MLP.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        device: str = "cpu",
        batch_size: int = 256,
        precision: torch.dtype | None = None,
    ) -> None:
        if device.startswith("cuda") and not torch.cuda.is_available():
            raise ConfigError(f"device '{device}' was asked for, but torch sees no CUDA device")
        self.device = torch.device(device)
        self.batch_size = batch_size
        self.precision = precision or native_precision(self.device)
        self.side_pix = checkpoint.pita.config.crop
        self.model = checkpoint.pita.to(self.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @torch.inference_mode()
    def predict(
        self, cutout_NCSS: NDArray[np.float32], ebv_N: NDArray, flux_NCR: NDArray | None = None
    ) -> Prediction:
        """Return redshifts, quantiles and the score of unusual images.

        A cutout is used when at least half of the pixels that the network sees, in every band,
        hold data.

        Args:
            cutout_NCSS: nJy per pixel, NaN where there is no pixel.
            ebv_N: Galactic E(B-V), magnitudes.
            flux_NCR: not looked at; PhotometryEngine looks at nothing else.
        """
        n = len(cutout_NCSS)
        prediction = Prediction(
            np.empty(n, np.float32),
            np.empty((n, len(LEVEL_Q)), np.float32),
            np.empty(n, np.float32),
        )
        for start in range(0, n, self.batch_size):
            rows = slice(start, start + self.batch_size)
            estimate = self._estimate_batch(cutout_NCSS[rows], ebv_N[rows])
            for column, values in zip(prediction, estimate, strict=True):
                column[rows] = values.float().cpu().numpy()
        unusable_N = ~usable(cutout_NCSS, self.side_pix)
        for column in prediction:
            column[unusable_N] = np.nan
        return prediction

    def _estimate_batch(self, cutout_BCSS: NDArray, ebv_B: NDArray) -> Estimate:
        model = self.model
        image_BCHW = prepare(
            torch.from_numpy(np.ascontiguousarray(cutout_BCSS)).to(self.device),
            torch.from_numpy(np.asarray(ebv_B, dtype=np.float32)).to(self.device),
            model.extinction_r_C,
            model.noise_C,
            model.config.crop,
            model.config.stretch,
        ).to(memory_format=torch.channels_last)
        reduced = self.precision != torch.float32
        with torch.autocast(self.device.type, dtype=self.precision, enabled=reduced):
            return model.estimate(image_BCHW)


class PhotometryEngine:
    """A photometry-MLP, ready to turn the fluxes of a store into redshifts, on the CPU.

    Args:
        survey: of the store, whose apertures hold the model's (see `Checkpoint.check_store`).

    Attributes:
        side_pix: side of the square round the aperture.
    """

    def __init__(self, model: PhotometryMLP, survey: Survey) -> None:
        radius_arcsec = model.config.aperture_radius_arcsec
        self.model = model
        self.aperture = survey.aperture_radii_arcsec.index(radius_arcsec)
        self.side_pix = 2 * math.ceil(radius_arcsec / survey.pixel_scale_arcsec) + 1

    def predict(self, cutout_NCSS: NDArray, ebv_N: NDArray, flux_NCR: NDArray) -> Prediction:
        """Return redshifts, NaN where a flux of the aperture is not finite; all else is NaN.

        Args:
            cutout_NCSS: not looked at.
            ebv_N: Galactic E(B-V), magnitudes.
            flux_NCR: nJy, in the store's apertures.
        """
        n = len(flux_NCR)
        return Prediction(
            self.model.predict(flux_NCR[:, :, self.aperture], ebv_N),
            np.full((n, len(LEVEL_Q)), np.nan, np.float32),
            np.full(n, np.nan, np.float32),
        )


def make_engine(
    checkpoint: Checkpoint, survey: Survey, device: str = "cpu"
) -> Engine | PhotometryEngine:
    """Return what makes redshifts of a store's sources; it fits the store (`check_store`).

    Raises:
        CheckpointError: the model was trained without redshifts.
    """
    if checkpoint.training.get("config", {}).get("method") == "self-supervised":
        raise CheckpointError(
            f"{checkpoint.path}: trained without redshifts (method self-supervised); fine-tune it "
            f"first: train with method fine-tuned and this file as initial_checkpoint"
        )
    if isinstance(checkpoint.model, PhotometryMLP):
        return PhotometryEngine(checkpoint.model, survey)
    return Engine(checkpoint, device)


def usable(cutout_NCSS: NDArray, crop: int) -> NDArray[np.bool_]:
    """Return (N,): whether every band has data in half of the central crop or more."""
    size = cutout_NCSS.shape[-1]
    start = size // 2 - crop // 2
    central = cutout_NCSS[..., start : start + crop, start : start + crop]
    fraction_NC = np.isfinite(central).mean(axis=(2, 3))
    return (fraction_NC >= MIN_FINITE_FRACTION).all(axis=1)


def native_precision(device: torch.device) -> torch.dtype:
    """Return bfloat16 where the device multiplies it natively, else float32."""
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if native else torch.float32
