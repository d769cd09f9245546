"""A finished model that teaches another one: its densities are the targets of unlabelled images.

Labels are few and bright; the student sees every image, turned, shifted and with noise added, while
the teacher sees it as it is. (Noisy Student: Xie et al. 2020, arXiv 1911.04252.)
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from photozhpc.errors import ConfigError
from photozhpc.model.checkpoint import load_checkpoint
from photozhpc.model.encode import encode_block
from photozhpc.model.engine import usable
from photozhpc.model.photometry import check_measured
from photozhpc.model.pita import PITA
from photozhpc.model.pita_config import PITAConfig
from photozhpc.store.cutout_store import CutoutStore
from photozhpc.store.loader import Block

KEPT = 2_000_000  # densities, 512 bytes each with 256 bins


class Teacher:
    """The densities of a model file for the images of a store.

    They are kept from epoch to epoch, for the first KEPT sources of a rank: the teacher's pass is a
    quarter of a training's time.

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
        self.kept: dict[int, NDArray[np.float16]] = {}

    def densities(self, block: Block) -> Tensor:
        """Return density_BK of all images of a block; NaN rows where there is no redshift."""
        id_B = block.source_id_N.tolist()
        new_B = np.array([i not in self.kept for i in id_B], bool)
        fresh: dict[int, NDArray[np.float16]] = {}
        if new_B.any():
            rows = self._densities(block.take(new_B))
            fresh = dict(zip(block.source_id_N[new_B].tolist(), rows, strict=True))
        density_BK = np.stack([fresh[i] if i in fresh else self.kept[i] for i in id_B])
        if len(self.kept) < KEPT:
            self.kept.update(fresh)
        return torch.from_numpy(density_BK).to(self.model.noise_C.device).float()

    @torch.no_grad()
    def _densities(self, block: Block) -> NDArray[np.float16]:
        encoded = encode_block(self.model, block, self.survey)
        device = self.model.noise_C.device
        input_BF, expert_BK = (
            torch.from_numpy(v).to(device) for v in (encoded.input_NF, encoded.expert_NK)
        )
        density_BK = self.model.density(input_BF, expert_BK if expert_BK.shape[1] else None)
        usable_B = torch.from_numpy(usable(block.cutout_NCSS, self.model.config.crop)).to(device)
        return torch.where(usable_B[:, None], density_BK, torch.nan).half().cpu().numpy()
