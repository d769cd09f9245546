"""A finished model that teaches another one: its densities are the targets of unlabelled images.

Labels are few and bright; the student sees every image, turned, shifted and with noise added, while
the teacher sees it as it is. (Noisy Student: Xie et al. 2020, arXiv 1911.04252.)
"""

import torch
from torch import Tensor

from photozhpc.errors import ConfigError
from photozhpc.model.checkpoint import load_checkpoint
from photozhpc.model.encode import encode_block
from photozhpc.model.engine import usable
from photozhpc.model.photometry import check_measured
from photozhpc.model.pita import PITA, PITAConfig
from photozhpc.store.cutout_store import CutoutStore
from photozhpc.store.loader import Block


class Teacher:
    """The densities of a model file for the images of a store.

    Args:
        path: a model of images with density heads.
        student: the configuration of the model that learns from it.

    Raises:
        PhotozError: the file is no model, or does not suit the store or the student.
    """

    def __init__(
        self, path: str, student: PITAConfig, store: CutoutStore, device: torch.device
    ) -> None:
        checkpoint = load_checkpoint(path)
        checkpoint.check_store(store.survey, store.cutout_size)
        config = checkpoint.pita.config
        bins = (config.density_bins, config.density_z_max)
        if bins != (student.density_bins, student.density_z_max):
            raise ConfigError(
                f"{path}: has model.density_bins {bins[0]} and density_z_max {bins[1]}; its "
                f"student needs the same, not {student.density_bins} and {student.density_z_max}"
            )
        check_measured(config.fluxes, store)
        self.survey = store.survey
        self.model: PITA = checkpoint.pita.to(device).eval()
        self.sha256 = checkpoint.sha256

    @torch.no_grad()
    def densities(self, block: Block) -> Tensor:
        """Return density_BK of all images of a block; NaN rows where there is no redshift."""
        encoded = encode_block(self.model, block, self.survey)
        device = self.model.noise_C.device
        input_BF, expert_BK = (
            torch.from_numpy(v).to(device) for v in (encoded.input_NF, encoded.expert_NK)
        )
        density_BK = self.model.density(input_BF, expert_BK if expert_BK.shape[1] else None)
        usable_B = torch.from_numpy(usable(block.cutout_NCSS, self.model.config.crop)).to(device)
        return torch.where(usable_B[:, None], density_BK, torch.nan)
