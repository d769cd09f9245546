"""Models of fluxes, ready to turn those of a store or a catalogue into redshifts, on the CPU."""

import numpy as np
import torch
from numpy.typing import NDArray

from photozhpc.model.pdf import CalibratedPdf, PdfForm
from photozhpc.model.photometry import FluxInput, PhotometryModel, enough_bands
from photozhpc.model.prediction import Prediction
from photozhpc.store.schema import Measurements
from photozhpc.survey import Survey


class PhotometryEngine:
    """A `PhotometryModel` and the fluxes of a survey.

    Args:
        survey: of the store (see `Checkpoint.check_store`).
        pdf: the form in which `predict_pdf` returns p(z); None: it returns none.

    Attributes:
        side_pix: 0: it sees no images.
        batch_size: sources in a forward pass.
    """

    side_pix = 0
    batch_size = 4096

    def __init__(self, model: PhotometryModel, survey: Survey, pdf: PdfForm | None = None) -> None:
        self.model = model
        self.input = FluxInput(model.config, survey)
        self.pdf = None if pdf is None else CalibratedPdf(model.calibration, pdf)

    def predict(self, cutout_NCSS: NDArray, ebv_N: NDArray, measured: Measurements) -> Prediction:
        """Return what `predict_pdf` does, without p(z)."""
        return self.predict_pdf(cutout_NCSS, ebv_N, measured)[0]

    @torch.inference_mode()
    def predict_pdf(
        self, cutout_NCSS: NDArray, ebv_N: NDArray, measured: Measurements
    ) -> tuple[Prediction, NDArray[np.float32] | None]:
        """Return redshifts, quantiles, the score of unusual fluxes, and p(z) if there is one.

        All are NaN for a source with fewer than MIN_BANDS measured bands.

        Args:
            cutout_NCSS: ignored.
            ebv_N: Galactic E(B-V), magnitudes.
        """
        flux_NCR, err_NCR = self.input(measured)
        n = len(flux_NCR)
        prediction = Prediction.unknown(n)
        pdf_NP = None
        if self.pdf is not None:
            pdf_NP = np.empty((n, len(self.pdf.axis_P)), np.float32)
        columns = [*prediction] if pdf_NP is None else [*prediction, pdf_NP]
        arrays = (flux_NCR, err_NCR, np.asarray(ebv_N, np.float32))
        for first in range(0, n, self.batch_size):
            rows = slice(first, first + self.batch_size)
            batch = (torch.from_numpy(np.ascontiguousarray(array[rows])) for array in arrays)
            for column, values in zip(columns, self.model(*batch, self.pdf), strict=False):
                column[rows] = values.numpy()
        unusable_N = ~enough_bands(flux_NCR)
        for column in columns:
            column[unusable_N] = np.nan
        return prediction, pdf_NP
