"""A checkpoint as a RAIL stage: from a store of cutouts to an ensemble of p(z).

    import photozhpc.rail
    stage = photozhpc.rail.PITAEstimator.make_stage(name="pita", model="model.safetensors")
    ensemble = stage.estimate("store.zarr")

RAIL's estimators take tables of magnitudes. This one takes images: its input is a store and its
model a checkpoint of photozhpc, each with its own data handle (as rail_deepdisc does for its
images). Everything else is RAIL's: chunks, point estimates, output, MPI. Needs the extra `rail`.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from photozhpc.errors import ConfigError

try:
    from ceci.config import StageParameter
    from rail.core.data import DataHandle, ModelHandle, QPHandle
    from rail.estimation.estimator import CatEstimator
    from tables_io import hdf5
except ImportError as error:
    raise ConfigError(
        "photozhpc.rail needs RAIL, which is not installed; pip install 'photozhpc[rail]'"
    ) from error

from photozhpc.catalog.pdf import PdfPart
from photozhpc.catalog.photoz_catalog import QUANTILE_LEVELS
from photozhpc.catalog.predict import (
    compare_with_training,
    estimate_flags,
    image_flags,
    photoz_flags,
    probability_of_stars,
)
from photozhpc.exports.qp import ensemble_of
from photozhpc.logs import LOG
from photozhpc.model import load_checkpoint
from photozhpc.model.engine import Engine
from photozhpc.model.photometry import check_measured
from photozhpc.store import CutoutStore, ShardKey

_BLOCK_LEN = 1024


class CutoutStoreHandle(DataHandle):
    """The path of a store made by `photozhpc extract`, in RAIL's terms."""

    suffix = "zarr"

    @classmethod
    def _read(cls, path: str, **_: Any) -> CutoutStore:
        store = CutoutStore.open(path)
        store.check_complete()
        return store

    def _size(self, path: str, **_: Any) -> int:
        return len(self._read(path))

    def _data_size(self, data: CutoutStore, **_: Any) -> int:
        return len(data)

    def iterator(self, **kwargs: Any) -> Iterator[tuple[int, int, dict[str, NDArray]]]:
        """Yield first row, last row + 1, and the columns of these sources in the store."""
        store = self.data if self.has_data else self._read(str(self.path))
        sizes = (kwargs.get("chunk_size", 10_000), kwargs.get("parallel_size", 1))
        for start, end in hdf5.data_ranges_by_rank(len(store), *sizes, kwargs.get("rank", 0)):
            shards = [(store.read_sources(key), rows) for key, rows in spans(store, start, end)]
            table = {
                name: np.concatenate(
                    [getattr(sources, f"{name}_N")[rows] for sources, rows in shards]
                )
                for name in ("source_id", "ra", "dec", "z_spec", "ebv")
            }
            table["redshift"] = table.pop("z_spec")
            yield start, end, table


class CheckpointHandle(ModelHandle):
    """The path of a checkpoint, in RAIL's terms: not a pickle, unlike RAIL's own models."""

    suffix = "safetensors"

    @classmethod
    def _read(cls, path: str, **_: Any) -> Any:
        return load_checkpoint(path)


class PITAEstimator(CatEstimator):
    """p(z) of every source of a store, from a checkpoint with a density.

    The ensemble has the rows of the store, in its order, on the model's own grid (zmin, zmax and
    nzbins only affect RAIL's point estimates). A source without a redshift has NaN as `photoz` and
    `zmode`, flag 8, and a uniform p(z). The ancillary table has RAIL's columns and those of the
    catalogue.
    """

    name = "PITAEstimator"
    entrypoint_function = "estimate"
    interactive_function = "pita_estimator"
    config_options = CatEstimator.config_options.copy()
    config_options.update(
        id_col=StageParameter(str, "source_id", msg="name of the column of identifiers"),
        device=StageParameter(str, "auto", msg="auto, cpu, cuda or cuda:N"),
    )
    inputs = [("model", CheckpointHandle), ("input", CutoutStoreHandle)]  # noqa: RUF012
    outputs = [("output", QPHandle)]  # noqa: RUF012

    @classmethod
    def generate_command(cls, *args: Any, **kwargs: Any) -> str:
        """Return the command with which a pipeline runs the stage.

        ceci expects `python -m photozhpc` to run stages, which it does not.
        """
        command: str = super().generate_command(*args, **kwargs)
        of_package, of_ceci = f"-m photozhpc {cls.name}", f"-m ceci {cls.get_module()}.{cls.name}"
        return command.replace(of_package, of_ceci, 1)

    def estimate(self, input_data: Any, **kwargs: Any) -> QPHandle:
        """Return the handle of the ensemble.

        Args:
            input_data: path of a store, a `CutoutStore`, or a `CutoutStoreHandle`.

        Raises:
            StoreError, CheckpointError: one is missing, damaged, or does not fit the other.
        """
        if isinstance(input_data, CutoutStore):
            input_data = input_data.path
        if isinstance(input_data, str | Path):
            CutoutStoreHandle._read(str(input_data))  # raises if the store is faulty
            input_data = CutoutStoreHandle("input", path=str(input_data))
        self.set_data("input", input_data, do_read=False)
        self.run()
        self.finalize()
        results = self.get_handle("output")
        if self.config.output_mode != "return":
            results.read(force=True)
        return results

    def run(self) -> None:
        """Load the model and the store; then estimate chunk by chunk, as RAIL's estimators do."""
        self.open_model(**self.config)
        if self.model is None:
            raise ConfigError("PITAEstimator: no model; pass model=PATH of a checkpoint")
        handle = self.get_handle("input", allow_missing=True)
        self._store = CutoutStoreHandle._read(str(handle.path))
        self.model.check_store(self._store.survey, self._store.cutout_size)
        check_measured(self.model.pita.config.fluxes, self._store)
        device = _device(self.config.device)
        self._engine = Engine(self.model, device, pdf="grid", survey=self._store.survey)
        side = min(self._engine.side_pix, self._store.cutout_size)
        self._comparison = compare_with_training(self.model, self._store, side)
        if self._comparison.warning:
            LOG.warning(f"{self._store.path}: {self._comparison.warning}")
        super().run()

    def _process_chunk(self, start: int, end: int, data: Any, first: bool) -> None:
        engine, pdf = self._engine, self._engine.pdf
        assert pdf is not None
        blocks: list[tuple[NDArray, ...]] = []
        side = min(engine.side_pix, self._store.cutout_size)
        for key, rows in spans(self._store, start, end):
            ebv_N = self._store.read_sources(key).ebv_N
            measured = self._store.read_measurements(key)
            for at in range(rows.start, rows.stop, _BLOCK_LEN):
                block = slice(at, min(at + _BLOCK_LEN, rows.stop))
                cutout_BCSS = self._store.read_cutouts(key, block, side)
                seen = measured.take(block)
                prediction, pdf_BP = engine.predict_pdf(cutout_BCSS, ebv_N[block], seen)
                flags_B = photoz_flags(cutout_BCSS, side, seen.flags_NC, prediction.z_phot_N)
                survey, compared = self._store.survey, self._comparison
                flags_B |= image_flags(cutout_BCSS, side, survey, compared.limits_2C)
                flags_B |= estimate_flags(
                    prediction.z_phot_N, prediction.quantile_NQ, prediction.ood_N
                )
                star_B = probability_of_stars(seen, survey, compared.point_sources)
                assert pdf_BP is not None  # the engine was made with pdf="grid"
                blocks.append((*prediction, pdf_BP, flags_B, star_B))
        photoz_N, mean_N, mode_N, quantile_NQ, ood_N, value_NP, flags_N, star_N = (
            np.concatenate(column) for column in zip(*blocks, strict=True)
        )
        lost_N = ~np.isfinite(photoz_N)
        value_NP[lost_N] = 1 / pdf.z_max
        levels = sorted(QUANTILE_LEVELS.values())
        ancil = {
            **{name: data[name] for name in ("source_id", "ra", "dec")},
            "photoz": photoz_N,
            "photoz_mean": mean_N,
            "photoz_mode": mode_N,
            **{name: quantile_NQ[:, levels.index(q)] for name, q in QUANTILE_LEVELS.items()},
            "photoz_ood": ood_N,
            "photoz_flags": flags_N,
            "star_probability": star_N,
        }
        part = PdfPart("grid", pdf.axis_P, pdf.z_max, data["source_id"], value_NP)
        ensemble = ensemble_of(part, ancil)
        for name in ("zmode", "zmean", "zmedian"):
            ensemble.ancil[name][lost_N] = np.nan
        self._do_chunk_output(ensemble, start, end, first, data=data)


def spans(store: CutoutStore, start: int, end: int) -> Iterator[tuple[ShardKey, slice]]:
    """Yield the shards, and their rows, that hold rows `start` to `end` of a store."""
    first = 0
    for key, length in store.index().shard_lengths().items():
        low, high = max(start - first, 0), min(end - first, length)
        if low < high:
            yield key, slice(low, high)
        first += length


def _device(name: str) -> str:
    if name != "auto":
        return name
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
