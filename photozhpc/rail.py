"""A checkpoint as a RAIL stage: from a store of cutouts to an ensemble of p(z).

    import photozhpc.rail
    stage = photozhpc.rail.PITAEstimator.make_stage(name="pita", model="model.safetensors")
    ensemble = stage.estimate("store.zarr")

RAIL's estimators take tables of magnitudes; this one takes images, so its input is a store and
its model a checkpoint of photozhpc, each with a data handle of its own (as rail_deepdisc has its
images beside RAIL's tables). Everything else is RAIL's: chunks, point estimates, output, MPI.
Needs the extra `rail`.
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
from photozhpc.catalog.photoz_catalog import INTERVAL_LEVELS
from photozhpc.catalog.predict import photoz_flags
from photozhpc.export.qp import ensemble_of
from photozhpc.model import load_checkpoint
from photozhpc.model.engine import Engine
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
        """Yield first row, last row + 1, and what the store knows of these sources but pixels."""
        store = self.data if self.has_data else self._read(str(self.path))
        sizes = (kwargs.get("chunk_size", 10_000), kwargs.get("parallel_size", 1))
        for start, end in hdf5.data_ranges_by_rank(len(store), *sizes, kwargs.get("rank", 0)):
            names = ("source_id_N", "ra_N", "dec_N", "z_spec_N", "ebv_N")
            pieces: dict[str, list[NDArray]] = {name: [] for name in names}
            for key, rows in spans(store, start, end):
                sources = store.read_sources(key)
                for name in names:
                    pieces[name].append(getattr(sources, name)[rows])
            table = {name.removesuffix("_N"): np.concatenate(pieces[name]) for name in names}
            table["redshift"] = table.pop("z_spec")
            yield start, end, table


class CheckpointHandle(ModelHandle):
    """The path of a checkpoint, in RAIL's terms: RAIL's own models are pickles, this is none."""

    suffix = "safetensors"

    @classmethod
    def _read(cls, path: str, **_: Any) -> Any:
        return load_checkpoint(path)


class PITAEstimator(CatEstimator):
    """p(z) of every source of a store, by a checkpoint with a density.

    The rows of the ensemble are those of the store, in its order. Its grid is the model's own
    (zmin, zmax, nzbins are of RAIL's point estimates alone). A source without a redshift
    has NaN as `photoz` and `zmode`, flag 8, and an even p(z): it may be anywhere. Beside RAIL's
    columns the ancillary table has those of the catalogue.
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
        """Return the command by which a pipeline runs the stage.

        ceci takes the top package for a program of stages, which `python -m photozhpc` is not.
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
            CutoutStoreHandle._read(str(input_data))  # a fault should be told of now
            input_data = CutoutStoreHandle("input", path=str(input_data))
        self.set_data("input", input_data, do_read=False)
        self.run()
        self.finalize()
        results = self.get_handle("output")
        if self.config.output_mode != "return":
            results.read(force=True)
        return results

    def run(self) -> None:
        """Estimate chunk by chunk, as every estimator of RAIL does."""
        self.open_model(**self.config)
        if self.model is None:
            raise ConfigError("PITAEstimator: no model; pass model=PATH of a checkpoint")
        handle = self.get_handle("input", allow_missing=True)
        self._store = CutoutStoreHandle._read(str(handle.path))
        self.model.check_store(self._store.survey, self._store.cutout_size)
        self._engine = Engine(self.model, _device(self.config.device), pdf="grid")
        super().run()

    def _process_chunk(self, start: int, end: int, data: Any, first: bool) -> None:
        engine, pdf = self._engine, self._engine.pdf
        assert pdf is not None
        blocks: list[tuple[NDArray, ...]] = []
        side = min(engine.side_pix, self._store.cutout_size)
        for key, rows in spans(self._store, start, end):
            ebv_N = self._store.read_sources(key).ebv_N
            flags_NC = self._store.read_measurements(key).flags_NC
            for at in range(rows.start, rows.stop, _BLOCK_LEN):
                some = slice(at, min(at + _BLOCK_LEN, rows.stop))
                cutout_BCSS = self._store.read_cutouts(key, some, side)
                found, pdf_BP = engine.predict_pdf(cutout_BCSS, ebv_N[some])
                flags_B = photoz_flags(cutout_BCSS, side, flags_NC[some], found.z_phot_N)
                assert pdf_BP is not None  # the engine was asked for it
                blocks.append((*found, pdf_BP, flags_B))
        photoz_N, quantile_NQ, ood_N, value_NP, flags_N = (
            np.concatenate(column) for column in zip(*blocks, strict=True)
        )
        lost_N = ~np.isfinite(photoz_N)
        value_NP[lost_N] = 1 / pdf.z_max
        levels = sorted(INTERVAL_LEVELS.values())
        ancil = {
            **{name: data[name] for name in ("source_id", "ra", "dec")},
            "photoz": photoz_N,
            **{name: quantile_NQ[:, levels.index(q)] for name, q in INTERVAL_LEVELS.items()},
            "photoz_ood": ood_N,
            "photoz_flags": flags_N,
        }
        part = PdfPart("grid", pdf.axis_P, pdf.z_max, data["source_id"], value_NP)
        ensemble = ensemble_of(part, ancil)
        ensemble.ancil["zmode"][lost_N] = np.nan
        self._do_chunk_output(ensemble, start, end, first, data=data)


def spans(store: CutoutStore, start: int, end: int) -> Iterator[tuple[ShardKey, slice]]:
    """Yield the shards, and the rows of them, that hold rows `start` to `end` of a store."""
    first = 0
    for key, length in store.index().shard_lengths().items():
        low, high = max(start - first, 0), min(end - first, length)
        if low < high:
            yield key, slice(low, high)
        first += length


def _device(wanted: str) -> str:
    if wanted != "auto":
        return wanted
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
