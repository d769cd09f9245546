"""The forward pass of inference: device, precision, batches; eager or compiled."""

import math
import threading
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from photozhpc.errors import CheckpointError, ConfigError
from photozhpc.model.augment import centre_crop
from photozhpc.model.checkpoint import Checkpoint
from photozhpc.model.compiled import compiled_forward
from photozhpc.model.forward import Forward
from photozhpc.model.pdf import INTERVAL_INDEX, CalibratedPdf, PdfForm
from photozhpc.model.photometry import FluxInput, PhotometryModel
from photozhpc.model.photometry_engine import PhotometryEngine
from photozhpc.model.photometry_mlp import PhotometryMLP
from photozhpc.model.pita import PITA
from photozhpc.model.prediction import Prediction
from photozhpc.mosaic.cutouts import count_finite
from photozhpc.store.loader import Block
from photozhpc.store.schema import Measurements
from photozhpc.survey import Survey

MIN_FINITE_FRACTION = 0.5
GPU_BATCH_SIZE = 2048
# On a CPU a batch's values between two layers should fit in the cache. Measured optima: 256 images
# for the bundled model, 32 for ConvNeXt-Tiny on 64 px (20% faster than 256).
CPU_BATCH_BYTES = 5.5e6


class Engine:
    """A checkpoint on a device, ready to turn cutouts into redshifts; threads may share it.

    Args:
        checkpoint: from `load_checkpoint`.
        device: "cpu", "cuda" or "cuda:N".
        batch_size: images per forward pass; default: by the device and the model's size.
        precision: torch.bfloat16 or torch.float32 for the encoder; default: bfloat16 where the
            device computes it natively. The heads always compute in float32.
        compiled: use compiled code (model/compiled.py), which is made on first use; the last batch
            is padded to full size. Without a compiler, warn and run uncompiled.
        pdf: the form in which `predict_pdf` returns p(z); None: it returns none.
        survey: of the store, which says where its fluxes are; default: the checkpoint's.

    Attributes:
        side_pix: side of the part of a cutout that the model sees.
        is_compiled: whether compiled code is in use.
        pdf: computes p(z), and has its form and axis; None: there is no p(z).

    Raises:
        ConfigError: the device is not available.
        CheckpointError: it is a photometry-MLP's, or has no density for p(z).
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        device: str = "cpu",
        batch_size: int | None = None,
        precision: torch.dtype | None = None,
        compiled: bool = False,
        pdf: PdfForm | None = None,
        survey: Survey | None = None,
    ) -> None:
        if device.startswith("cuda") and not torch.cuda.is_available():
            raise ConfigError(
                f"torch sees no CUDA device for device '{device}'; use device cpu, or check the "
                f"driver and PyTorch's CUDA build"
            )
        self.device = torch.device(device)
        self.batch_size = batch_size or default_batch_size(checkpoint.pita, self.device)
        self.precision = precision or native_precision(self.device)
        config = checkpoint.pita.config
        self.side_pix = config.crop
        self.fluxes: FluxInput | None = None
        if config.fluxes.n_apertures:
            self.fluxes = FluxInput(config.fluxes, survey or checkpoint.survey)
        if pdf is not None:
            _require_density(checkpoint)
        self.forward = Forward(checkpoint.pita, self.precision, pdf).eval().to(self.device)
        self._full_batch: Callable[..., Sequence[Tensor]] | None = None
        if compiled:
            self._full_batch = compiled_forward(
                checkpoint, self.precision, self.batch_size, self.device, pdf
            )
        self._computing = threading.Lock()
        on_cuda = self.device.type == "cuda"
        self._copies = torch.cuda.Stream(self.device) if on_cuda else None

    @property
    def pdf(self) -> CalibratedPdf | None:
        return self.forward.pdf

    @property
    def is_compiled(self) -> bool:
        return self._full_batch is not None

    def predict(
        self,
        cutout_NCSS: NDArray[np.float32],
        ebv_N: NDArray,
        measured: Measurements | Block | None = None,
    ) -> Prediction:
        """Return what `predict_pdf` does, without p(z)."""
        return self.predict_pdf(cutout_NCSS, ebv_N, measured)[0]

    def predict_pdf(
        self,
        cutout_NCSS: NDArray[np.float32],
        ebv_N: NDArray,
        measured: Measurements | Block | None = None,
    ) -> tuple[Prediction, NDArray[np.float32] | None]:
        """Return redshifts, quantiles, the score of unusual images, and p(z) if there is one.

        A cutout is used if at least half of the pixels that the network sees have data, in every
        band.

        Args:
            cutout_NCSS: nJy per pixel, NaN where there is no pixel; S is side_pix or more.
            ebv_N: Galactic E(B-V), magnitudes.
            measured: forced photometry; None: only for a model that takes none.

        Raises:
            ValueError: the cutouts are smaller than side_pix, or the photometry is missing.
        """
        inputs: list[NDArray] = [cutout_NCSS, np.asarray(ebv_N, dtype=np.float32)]
        if self.fluxes is not None:
            if measured is None:
                raise ValueError("the model takes fluxes too: pass 'measured'")
            inputs += self.fluxes(measured)
        n = len(cutout_NCSS)
        unusable_N = ~usable(cutout_NCSS, self.side_pix)
        prediction = Prediction.unknown(n)
        pdf = self.pdf
        pdf_NP = None if pdf is None else np.empty((n, len(pdf.axis_P)), np.float32)
        columns = [*prediction] if pdf_NP is None else [*prediction, pdf_NP]
        batches = [slice(a, min(a + self.batch_size, n)) for a in range(0, n, self.batch_size)]
        # Start all batches before waiting for the first result.
        estimates = [self._estimate(*(values[rows] for values in inputs)) for rows in batches]
        for rows, estimate in zip(batches, estimates, strict=True):
            for column, values in zip(columns, estimate, strict=True):
                column[rows] = values.cpu().numpy()
        if pdf is not None and pdf_NP is not None and pdf.form == "quantiles":
            prediction.quantile_NQ[:] = pdf_NP[:, INTERVAL_INDEX]  # to the last bit
        for column in columns:
            column[unusable_N] = np.nan
        return prediction, pdf_NP

    @torch.inference_mode()
    def _estimate(self, cutout_BCSS: NDArray[np.float32], *others: NDArray) -> Sequence[Tensor]:
        inputs, n = [centre_crop(cutout_BCSS, self.side_pix), *others], len(cutout_BCSS)
        missing = self.batch_size - n
        if self._full_batch is not None and missing:
            inputs = [np.pad(v, ((0, missing), *[(0, 0)] * (v.ndim - 1))) for v in inputs]
        tensors = [self._to_device(values) for values in inputs]
        with self._computing:
            estimate = (self._full_batch or self.forward)(*tensors)
        return [values[:n] for values in estimate]

    def _to_device(self, values: NDArray) -> Tensor:
        """Return a tensor on the device; with CUDA, copied while the device computes."""
        tensor = torch.from_numpy(np.ascontiguousarray(values))
        if self._copies is None:
            return tensor
        with torch.cuda.stream(self._copies):
            tensor = tensor.pin_memory().to(self.device, non_blocking=True)
        computing = torch.cuda.current_stream(self.device)
        computing.wait_stream(self._copies)
        tensor.record_stream(computing)
        return tensor


class PhotometryMLPEngine:
    """A photometry-MLP, ready to turn the fluxes of a store into redshifts, on the CPU.

    Args:
        survey: of the store; its apertures include the model's (see `Checkpoint.check_store`).

    Attributes:
        side_pix: side of the square around the aperture.
        batch_size: a reasonable number of sources per call.
    """

    batch_size = 1024
    pdf: CalibratedPdf | None = None

    def __init__(self, model: PhotometryMLP, survey: Survey) -> None:
        radius_arcsec = model.config.aperture_radius_arcsec
        self.model = model
        self.aperture = survey.aperture_radii_arcsec.index(radius_arcsec)
        self.side_pix = 2 * math.ceil(radius_arcsec / survey.pixel_scale_arcsec) + 1

    def predict(self, cutout_NCSS: NDArray, ebv_N: NDArray, measured: Measurements) -> Prediction:
        """Return redshifts, NaN where a flux of the aperture is not finite; all else is NaN.

        Args:
            cutout_NCSS: ignored.
            ebv_N: Galactic E(B-V), magnitudes.
        """
        flux_NC = measured.flux_NCR[:, :, self.aperture]
        unknown = Prediction.unknown(len(flux_NC))
        return unknown._replace(z_phot_N=self.model.predict(flux_NC, ebv_N))

    def predict_pdf(
        self, cutout_NCSS: NDArray, ebv_N: NDArray, measured: Measurements
    ) -> tuple[Prediction, None]:
        """Return what `predict` does, and None for p(z)."""
        return self.predict(cutout_NCSS, ebv_N, measured), None


def make_engine(
    checkpoint: Checkpoint,
    survey: Survey,
    device: str = "cpu",
    compiled: bool = False,
    pdf: PdfForm | None = None,
) -> Engine | PhotometryEngine | PhotometryMLPEngine:
    """Return the engine of a checkpoint that fits the store (`Checkpoint.check_store`).

    Raises:
        CheckpointError: the model was trained without redshifts, or has no density for `pdf`.
    """
    if checkpoint.training.get("config", {}).get("method") == "self-supervised":
        raise CheckpointError(
            f"{checkpoint.path}: was trained without redshifts (method self-supervised); fine-tune "
            f"it first: train with method fine-tuned and this file as initial_checkpoint"
        )
    if pdf is not None:
        _require_density(checkpoint)
    if isinstance(checkpoint.model, PhotometryMLP):
        return PhotometryMLPEngine(checkpoint.model, survey)
    if isinstance(checkpoint.model, PhotometryModel):
        return PhotometryEngine(checkpoint.model, survey, pdf)
    return Engine(checkpoint, device, compiled=compiled, pdf=pdf, survey=survey)


def _require_density(checkpoint: Checkpoint) -> None:
    if isinstance(checkpoint.model, PhotometryModel):
        return
    model = checkpoint.model
    if not isinstance(model, PITA) or model.uncertainty is None or not model.uncertainty.is_fitted:
        raise CheckpointError(
            f"{checkpoint.path}: has no density heads, which p(z) needs; leave --pdf out, or train "
            f"with model.density_bins above 0"
        )
    if not model.uncertainty.level_GQ.isfinite().all():
        raise CheckpointError(
            f"{checkpoint.path}: was trained on all labels, which left none to calibrate p(z); "
            f"calibrate it first: photozhpc calibrate"
        )


def usable(cutout_NCSS: NDArray, crop: int) -> NDArray[np.bool_]:
    """Return (N,): whether every band has data in at least half of the central crop."""
    return np.all(count_finite(cutout_NCSS, crop) >= MIN_FINITE_FRACTION * crop**2, axis=1)


def default_batch_size(model: PITA, device: torch.device) -> int:
    """Return how many images a forward pass should process: a power of two."""
    if device.type != "cpu":
        return GPU_BATCH_SIZE
    # The widest layer of a ConvNeXt: four times the stem's channels, on its map, in two bytes.
    stem = next(m for m in model.encoder.modules() if isinstance(m, nn.Conv2d))
    n_pixels = (model.config.crop // stem.stride[0]) ** 2
    n_images = CPU_BATCH_BYTES / (n_pixels * 4 * stem.out_channels * 2)
    return int(min(max(2 ** round(math.log2(n_images)), 16), 256))


def native_precision(device: torch.device) -> torch.dtype:
    """Return bfloat16 if the device multiplies it natively, else float32."""
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if native else torch.float32
