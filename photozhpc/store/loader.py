"""Shards -> shuffled training batches, and whole samples for validation.

Memory is bounded: one window of sources is shuffled as a whole while the next is read.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from photozhpc.errors import ConfigError, StoreError
from photozhpc.sources.read import Sources
from photozhpc.store.cutout_store import CutoutStore
from photozhpc.store.schema import Measurements, ShardKey

Split = Literal["train", "validation", "calibration", "test", "all"]


@dataclass(frozen=True)
class Block:
    """Cutouts with the data of their sources.

    Attributes:
        cutout_NCSS: nJy per pixel.
        flux_NCR, flux_err_NCR, kron_flux_NC, kron_flux_err_NC: as in `Measurements`.
        z_spec_N: NaN = unlabelled.
    """

    source_id_N: NDArray[np.int64]
    cutout_NCSS: NDArray[np.float32]
    flux_NCR: NDArray[np.float32]
    flux_err_NCR: NDArray[np.float32]
    kron_flux_NC: NDArray[np.float32]
    kron_flux_err_NC: NDArray[np.float32]
    ebv_N: NDArray[np.float32]
    z_spec_N: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.source_id_N)

    def take(self, rows: NDArray | slice) -> "Block":
        return Block(*(getattr(self, name)[rows] for name in self.__dataclass_fields__))

    @staticmethod
    def join(blocks: list["Block"], cutout_NCSS: NDArray[np.float32] | None = None) -> "Block":
        """Return the blocks as one.

        Args:
            cutout_NCSS: memory for the cutouts.
        """
        joined: dict[str, Any] = {
            name: np.concatenate(
                [getattr(block, name) for block in blocks],
                out=cutout_NCSS if name == "cutout_NCSS" else None,
            )
            for name in Block.__dataclass_fields__
        }
        return Block(**joined)


def label_split(source_id_N: NDArray[np.int64], seed: int) -> NDArray[np.str_]:
    """Assign each source to "train" (70%), "validation", "calibration" or "test" (10% each).

    The assignment is a hash of the identifier, so it does not depend on which sources are read,
    or in which order: the four never overlap, in any run with this seed.
    """
    u_N = hash_of(source_id_N, seed)
    return np.select(
        [u_N < 0.70, u_N < 0.80, u_N < 0.90], ["train", "validation", "calibration"], "test"
    )


def in_split(
    source_id_N: NDArray[np.int64], split: Split, seed: int, label_fraction: float = 1.0
) -> NDArray[np.bool_]:
    """Return whether each source belongs to a split (see `label_split`), or to "all" of them.

    Args:
        label_fraction: share of the training split, or of all, to use.
    """
    if split in ("train", "all"):
        whole = 0.70 if split == "train" else 1.0
        return hash_of(source_id_N, seed) < whole * label_fraction
    return label_split(source_id_N, seed) == split


def hash_of(source_id_N: NDArray[np.int64], seed: int) -> NDArray[np.float64]:
    """Return a number in [0, 1) for each identifier (SplitMix64)."""
    with np.errstate(over="ignore"):
        h_N = source_id_N.astype(np.uint64) + np.uint64(seed) * np.uint64(0x9E3779B97F4A7C15)
        h_N = (h_N ^ (h_N >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        h_N = (h_N ^ (h_N >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        h_N = h_N ^ (h_N >> np.uint64(31))
    return h_N / 2.0**64


@dataclass(frozen=True)
class Sampling:
    """Which sources of a store a training epoch sees, how often, and in which batches.

    Attributes:
        batch_size: sources per step, over all ranks; a multiple of `lanes`.
        seed: of the shuffling and of the label split.
        aperture: index of the aperture whose fluxes are the features.
        labelled_only: leave out sources without a training label.
        label_repeat: how often a source with a training label appears in an epoch; the others
            appear once. If labels are few, a batch would otherwise hold almost none.
        label_fraction: share of the training labels to use; those of a smaller share are a subset
            of those of a larger one.
        labels: the split whose labels are for training.
        lanes: streams that an epoch is divided into, see TrainingLoader.
        shuffle_len: sources in the windows of all lanes (memory holds twice as many, over all
            ranks). An epoch that is not longer is read once and kept in memory.
    """

    batch_size: int
    seed: int
    aperture: int
    labelled_only: bool = False
    label_repeat: int = 1
    label_fraction: float = 1.0
    labels: Literal["train", "all"] = "train"
    lanes: int = 8
    shuffle_len: int = 8192


class TrainingLoader:
    """Shuffled batches of a store; only the training split's labels are visible.

    The sources of an epoch, shard after shard in a newly drawn order, form one line. It is cut
    into `lanes` stretches of equal length; a batch takes the same number from each, in the order
    of the lanes, out of a window that moves along the stretch and is shuffled as a whole. Ranks
    share the lanes. So every rank makes the same number of steps, no source is drawn twice, fewer
    sources than a batch are left out, and a step's sources do not depend on the number of ranks.

    Args:
        rank, world: number of this process, and of all that share the store; `lanes` is a multiple
            of `world`.

    Attributes:
        lanes: numbers of this rank's lanes.
        lane_batch: sources that a batch takes from each lane.

    Raises:
        ConfigError: batch_size is not a multiple of `lanes`, or `lanes` not of `world`.
        StoreError: the sources do not fill one batch.
    """

    def __init__(
        self, store: CutoutStore, sampling: Sampling, rank: int = 0, world: int = 1
    ) -> None:
        batch_size, lanes = sampling.batch_size, sampling.lanes
        if batch_size % lanes or lanes % world:
            raise ConfigError(
                f"batch_size ({batch_size}) must be a multiple of lanes ({lanes}), and lanes of "
                f"the number of ranks ({world})"
            )
        self.store = store
        self.sampling = sampling
        self.lanes = range(rank * lanes // world, (rank + 1) * lanes // world)
        self.lane_batch = batch_size // lanes
        self._window_steps = max(1, sampling.shuffle_len // batch_size)
        self._lengths = self._count()
        total = sum(self._lengths.values())
        self.steps_per_epoch = total // batch_size
        self._cache: dict[ShardKey, Block] | None = {} if total <= sampling.shuffle_len else None
        if self.steps_per_epoch == 0:
            what, method = "measured sources", ""
            if sampling.labelled_only:
                what, method = "training labels", ", or method 'self-supervised'"
            raise StoreError(
                f"{store.path}: {total} {what} do not fill one batch of {batch_size}; use a "
                f"smaller batch_size or a larger store{method}"
            )

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[list[Block]]:
        """Yield the batches of an epoch from `first_step` on: one block per lane."""
        line = self._line(epoch)
        windows = range(
            first_step // self._window_steps, -(-self.steps_per_epoch // self._window_steps)
        )
        with ThreadPoolExecutor(max_workers=1) as reader:
            pending = [reader.submit(self._read_window, line, epoch, w) for w in windows[:1]]
            for window in windows:
                lanes = pending.pop().result()
                if window + 1 in windows:
                    pending.append(reader.submit(self._read_window, line, epoch, window + 1))
                start = window * self._window_steps
                stop = min(start + self._window_steps, self.steps_per_epoch)
                for step in range(max(start, first_step), stop):
                    first = (step - start) * self.lane_batch
                    yield [block.take(slice(first, first + self.lane_batch)) for block in lanes]

    def _line(self, epoch: int) -> list[tuple[ShardKey, int]]:
        """Return the shards in this epoch's order, each with its number of sources."""
        keys = list(self._lengths)
        order = np.random.default_rng([self.sampling.seed, epoch]).permutation(len(keys))
        return [(keys[i], self._lengths[keys[i]]) for i in order]

    def _read_window(
        self, line: list[tuple[ShardKey, int]], epoch: int, window: int
    ) -> list[Block]:
        lane_len = self.steps_per_epoch * self.lane_batch
        window_len = self._window_steps * self.lane_batch
        blocks = []
        for lane in self.lanes:
            first = lane * lane_len + window * window_len
            last = min(first + window_len, (lane + 1) * lane_len)
            parts, offset = [], 0
            for key, n in line:
                if offset < last and offset + n > first:
                    parts.append(self._read(key, max(first - offset, 0), min(last - offset, n)))
                offset += n
            block = Block.join(parts)
            rng = np.random.default_rng([self.sampling.seed, epoch, window, lane])
            blocks.append(block.take(rng.permutation(len(block))))
        return blocks

    def _count(self) -> dict[ShardKey, int]:
        counts = {}
        for key in self.store.shards():
            rows_N = self._rows(self.store.read_sources(key), self.store.read_measurements(key))
            if len(rows_N):
                counts[key] = len(rows_N)
        return counts

    def _labelled(self, sources: Sources) -> NDArray[np.bool_]:
        sampling = self.sampling
        chosen_N = in_split(
            sources.source_id_N, sampling.labels, sampling.seed, sampling.label_fraction
        )
        return np.isfinite(sources.z_spec_N) & chosen_N

    def _rows(self, sources: Sources, measured: Measurements) -> NDArray[np.intp]:
        """Return the rows of a shard that an epoch sees, ascending, repeated as it repeats them."""
        labelled_N = self._labelled(sources)
        usable_N = np.isfinite(measured.flux_NCR[:, :, self.sampling.aperture]).all(axis=1)
        if self.sampling.labelled_only:
            usable_N &= labelled_N
        return np.repeat(
            np.arange(len(sources)), np.where(labelled_N, self.sampling.label_repeat, 1) * usable_N
        )

    def _read(self, key: ShardKey, first: int, last: int) -> Block:
        """Read the sources [first, last) of those that `_rows` lists for a shard."""
        if self._cache is None:
            return self._read_rows(key, slice(first, last))
        if key not in self._cache:
            self._cache[key] = self._read_rows(key, slice(None))
        return self._cache[key].take(slice(first, last))

    def _read_rows(self, key: ShardKey, part: slice) -> Block:
        sources, measured = self.store.read_sources(key), self.store.read_measurements(key)
        rows_N = self._rows(sources, measured)[part]
        span = slice(int(rows_N[0]), int(rows_N[-1]) + 1)
        cutout_NCSS = self.store.read_cutouts(key, span)[rows_N - rows_N[0]]
        block = _block(sources, measured, cutout_NCSS, rows_N)
        block.z_spec_N[~self._labelled(sources)[rows_N]] = np.nan
        return block


def read_labelled(
    store: CutoutStore, split: Split, seed: int, label_fraction: float = 1.0
) -> Block:
    """Return every labelled source of one split, in the store's order.

    Args:
        label_fraction: share of the training split, as in `Sampling`.

    Raises:
        StoreError: there is none.
    """
    blocks = []
    for key in store.shards():
        sources = store.read_sources(key)
        rows_N = _label_rows(sources, split, seed, label_fraction)
        if len(rows_N):
            cutout_NCSS = store.read_cutouts(key)[rows_N]
            measured = store.read_measurements(key)
            blocks.append(_block(sources, measured, cutout_NCSS, rows_N))
    if not blocks:
        raise StoreError(
            f"{store.path}: no source with a z_spec falls into the {split} split; label more "
            f"sources"
        )
    return Block.join(blocks)


def read_labels(
    store: CutoutStore, split: Split, seed: int, label_fraction: float = 1.0
) -> NDArray[np.int64]:
    """Return source_id_N of the sources that `read_labelled` would read."""
    ids = [np.empty(0, np.int64)]
    for key in store.shards():
        sources = store.read_sources(key)
        ids.append(sources.source_id_N[_label_rows(sources, split, seed, label_fraction)])
    return np.concatenate(ids)


def _label_rows(
    sources: Sources, split: Split, seed: int, label_fraction: float
) -> NDArray[np.intp]:
    in_split_N = in_split(sources.source_id_N, split, seed, label_fraction)
    return np.flatnonzero(np.isfinite(sources.z_spec_N) & in_split_N)


def typical_noise(store: CutoutStore, aperture: int) -> tuple[NDArray, NDArray]:
    """Return (noise_C, flux_err_C): median pixel noise and flux error in an aperture, nJy.

    The pixel noise follows from the smallest aperture's error: sigma = error / sqrt(area).

    Raises:
        StoreError: a band has no finite flux error.
    """
    err_NCR = np.concatenate([store.read_measurements(k).flux_err_NCR for k in store.shards()])
    err_NCR = np.where(np.isfinite(err_NCR) & (err_NCR > 0), err_NCR, np.nan)
    if not np.isfinite(err_NCR).any(axis=0).all():
        raise StoreError(
            f"{store.path}: a band has no flux errors, which scale its images; extract the store "
            f"from mosaics of all bands"
        )
    median_CR = np.nanmedian(err_NCR, axis=0)
    radii_pix = np.array(store.survey.aperture_radii_arcsec) / store.survey.pixel_scale_arcsec
    smallest = int(np.argmin(radii_pix))
    area = np.pi * radii_pix[smallest] ** 2
    return median_CR[:, smallest] / np.sqrt(area), median_CR[:, aperture]


def _block(
    sources: Sources, measured: Measurements, cutout_NCSS: NDArray, rows_N: NDArray[np.intp]
) -> Block:
    """Return some rows of a shard as a block; `cutout_NCSS` holds only these rows."""
    fluxes = ("flux_NCR", "flux_err_NCR", "kron_flux_NC", "kron_flux_err_NC")
    return Block(
        source_id_N=sources.source_id_N[rows_N],
        cutout_NCSS=cutout_NCSS,
        **{name: getattr(measured, name)[rows_N] for name in fluxes},
        ebv_N=sources.ebv_N[rows_N],
        z_spec_N=sources.z_spec_N[rows_N],
    )
