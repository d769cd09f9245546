"""Shards -> shuffled training batches, and whole samples for validation.

Memory is bounded: a buffer of shards is shuffled as a whole while the next one is read.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from photozhpc.errors import StoreError
from photozhpc.mosaic.sources import Sources
from photozhpc.store.cutout_store import CutoutStore, Measurements, ShardKey

Split = Literal["train", "validation", "calibration", "test"]


@dataclass(frozen=True)
class Block:
    """Cutouts with what is known of their sources.

    Attributes:
        cutout_NCSS: nJy per pixel.
        flux_NC, flux_err_NC: nJy in the feature aperture.
        z_spec_N: NaN = unlabelled.
    """

    source_id_N: NDArray[np.int64]
    cutout_NCSS: NDArray[np.float32]
    flux_NC: NDArray[np.float32]
    flux_err_NC: NDArray[np.float32]
    ebv_N: NDArray[np.float32]
    z_spec_N: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.source_id_N)

    def take(self, rows: NDArray | slice) -> "Block":
        return Block(*(getattr(self, name)[rows] for name in self.__dataclass_fields__))

    @staticmethod
    def join(blocks: list["Block"]) -> "Block":
        return Block(
            *(
                np.concatenate([getattr(block, name) for block in blocks])
                for name in Block.__dataclass_fields__
            )
        )


def label_split(source_id_N: NDArray[np.int64], seed: int) -> NDArray[np.str_]:
    """Assign each source to "train" (70%), "validation", "calibration" or "test" (10% each).

    The assignment is a hash of the identifier, so it does not depend on which sources are read,
    or in which order: the four never overlap, in any run with this seed.
    """
    u_N = _hash(source_id_N, seed)
    return np.select(
        [u_N < 0.70, u_N < 0.80, u_N < 0.90], ["train", "validation", "calibration"], "test"
    )


def _hash(source_id_N: NDArray[np.int64], seed: int) -> NDArray[np.float64]:
    """Return a number in [0, 1) for each identifier (SplitMix64)."""
    with np.errstate(over="ignore"):
        h_N = source_id_N.astype(np.uint64) + np.uint64(seed) * np.uint64(0x9E3779B97F4A7C15)
        h_N = (h_N ^ (h_N >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        h_N = (h_N ^ (h_N >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        h_N = h_N ^ (h_N >> np.uint64(31))
    return h_N / 2.0**64


class TrainingLoader:
    """Shuffled batches of a store; labels other than the training split's are hidden.

    Args:
        store: its cutouts.
        batch_size: sources in a batch, on this rank.
        seed: of the shuffling and of the label split.
        aperture: index of the aperture whose fluxes are the features.
        labelled_only: leave sources without a training label out.
        label_repeat: how often a source with a training label comes in an epoch, against once
            for the others: with few labels, a batch would else hold next to none.
        rank, world: this process and how many share the store.
        buffer_len: sources that are shuffled together (and held in memory, twice).
    """

    def __init__(
        self,
        store: CutoutStore,
        batch_size: int,
        seed: int,
        aperture: int,
        labelled_only: bool = False,
        label_repeat: int = 1,
        rank: int = 0,
        world: int = 1,
        buffer_len: int = 8192,
    ) -> None:
        self.store = store
        self.batch_size = batch_size
        self.seed = seed
        self.aperture = aperture
        self.labelled_only = labelled_only
        self.label_repeat = label_repeat
        self.rank = rank
        self.world = world
        self.buffer_len = buffer_len
        self._lengths = self._count()
        total = sum(self._lengths.values())
        self.steps_per_epoch = total // (batch_size * world)
        if self.steps_per_epoch == 0:
            what = "training labels" if labelled_only else "sources"
            raise StoreError(
                f"{store.path}: {total} {what} do not fill one batch of {batch_size} on each of "
                f"{world} ranks; use a smaller batch_size or a larger store"
            )

    def epoch(self, epoch: int) -> Iterator[Block]:
        """Yield steps_per_epoch batches: every rank the same number, whatever its shards."""
        rng = np.random.default_rng([self.seed, self.rank, epoch])
        carry: list[Block] = []
        steps = 0
        with ThreadPoolExecutor(max_workers=1) as reader:
            groups = self._groups(epoch)
            coming = reader.submit(self._read, next(groups))
            while steps < self.steps_per_epoch:
                block = Block.join([*carry, coming.result()])
                coming = reader.submit(self._read, next(groups))
                block = block.take(rng.permutation(len(block)))
                whole = len(block) // self.batch_size * self.batch_size
                for start in range(0, whole, self.batch_size):
                    yield block.take(slice(start, start + self.batch_size))
                    steps += 1
                    if steps == self.steps_per_epoch:
                        return
                carry = [block.take(slice(whole, None))]

    def _groups(self, epoch: int) -> Iterator[list[ShardKey]]:
        """Yield, without end, this rank's shards in groups of about buffer_len sources."""
        repeat = 0
        while True:
            order = np.random.default_rng([self.seed, epoch, repeat])
            keys = list(self._lengths)
            mine = [keys[i] for i in order.permutation(len(keys))][self.rank :: self.world]
            mine = mine or keys
            group: list[ShardKey] = []
            for key in mine:
                group.append(key)
                if sum(self._lengths[k] for k in group) >= self.buffer_len:
                    yield group
                    group = []
            if group:
                yield group
            repeat += 1

    def _count(self) -> dict[ShardKey, int]:
        lengths = self.store.shard_lengths()
        if not self.labelled_only:
            return lengths
        counts = {key: int(self._labelled(self.store.read_sources(key)).sum()) for key in lengths}
        return {key: count for key, count in counts.items() if count}

    def _labelled(self, sources: Sources) -> NDArray[np.bool_]:
        in_split_N = label_split(sources.source_id_N, self.seed) == "train"
        return np.isfinite(sources.z_spec_N) & in_split_N

    def _read(self, group: list[ShardKey]) -> Block:
        blocks = []
        for key in group:
            sources = self.store.read_sources(key)
            labelled_N = self._labelled(sources)
            block = _block(
                sources,
                self.store.read_measurements(key),
                self.store.read_cutouts(key),
                self.aperture,
            )
            block.z_spec_N[~labelled_N] = np.nan
            wanted_N = np.isfinite(block.flux_NC).all(axis=1)  # measured in every band
            if self.labelled_only:
                wanted_N &= labelled_N
            times_N = np.where(labelled_N, self.label_repeat, 1)
            blocks.append(block.take(np.repeat(np.flatnonzero(wanted_N), times_N[wanted_N])))
        return Block.join(blocks)


def read_labelled(store: CutoutStore, split: Split, seed: int, aperture: int) -> Block:
    """Return every labelled source of one split, in the store's order.

    Raises:
        StoreError: there is none.
    """
    blocks = []
    for key in store.shards():
        sources = store.read_sources(key)
        in_split_N = label_split(sources.source_id_N, seed) == split
        rows_N = np.flatnonzero(np.isfinite(sources.z_spec_N) & in_split_N)
        if len(rows_N):
            block = _block(sources, store.read_measurements(key), store.read_cutouts(key), aperture)
            blocks.append(block.take(rows_N))
    if not blocks:
        raise StoreError(
            f"{store.path}: no source with a z_spec falls into the {split} split; "
            f"label more sources"
        )
    return Block.join(blocks)


def typical_noise(store: CutoutStore, aperture: int) -> tuple[NDArray, NDArray]:
    """Return (noise_C, flux_err_C): median noise of a pixel and flux error in an aperture, nJy.

    The noise of a pixel follows from the smallest aperture's error: sigma = error / sqrt(area).

    Raises:
        StoreError: a band has no finite flux error.
    """
    err_NCR = np.concatenate([store.read_measurements(k).flux_err_NCR for k in store.shards()])
    err_NCR = np.where(np.isfinite(err_NCR) & (err_NCR > 0), err_NCR, np.nan)
    if not np.isfinite(err_NCR).any(axis=0).all():
        raise StoreError(f"{store.path}: a band has no flux errors at all; cannot scale its images")
    median_CR = np.nanmedian(err_NCR, axis=0)
    radii_pix = np.array(store.survey.aperture_radii_arcsec) / store.survey.pixel_scale_arcsec
    smallest = int(np.argmin(radii_pix))
    area = np.pi * radii_pix[smallest] ** 2
    return median_CR[:, smallest] / np.sqrt(area), median_CR[:, aperture]


def _block(sources: Sources, measured: Measurements, cutout_NCSS: NDArray, aperture: int) -> Block:
    return Block(
        source_id_N=sources.source_id_N,
        cutout_NCSS=cutout_NCSS,
        flux_NC=measured.flux_NCR[:, :, aperture],
        flux_err_NC=measured.flux_err_NCR[:, :, aperture],
        ebv_N=sources.ebv_N,
        z_spec_N=sources.z_spec_N.copy(),
    )
