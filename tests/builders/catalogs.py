"""Short runs of inference, and a catalogue without one."""

import os
import signal
import time
from pathlib import Path

import numpy as np
import pandas as pd

from photozhpc.catalog import read_catalog
from photozhpc.catalog.photoz_catalog import make_table, write_part
from photozhpc.catalog.predict import predict_part
from photozhpc.survey import load_survey
from photozhpc.workers.dask_workers import DaskWorkers

TILES = {"a": 400, "b": 30, "c": 5, "off-tile": 3, "z": 200}
SMALL = {"workers": DaskWorkers.of(2, "cpu"), "rows_per_part": 64, "progress": False}
ALONE = {**SMALL, "workers": DaskWorkers.of(1, "cpu")}


def part_stats(out: Path) -> dict[str, tuple[int, int]]:
    return {p.name: (p.stat().st_ino, p.stat().st_mtime_ns) for p in (out / "catalog").iterdir()}


def poisoned(model, part, *rest):
    """Stands for `predict_part`: one part kills whatever worker tries it."""
    if part.index == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    return predict_part(model, part, *rest)


def late_first(model, part, *rest):
    """Stands for `predict_part`: the first part is the last to be ready."""
    if part.index == 0:
        time.sleep(2)
    return predict_part(model, part, *rest)


SURVEY = load_survey("roman-sim")
N_PARTS, PART_LEN = 6, 400
NOWHERE = 7  # sources whose position is not known


def write_catalogue(folder: Path) -> Path:
    """A catalogue round RA 0 and at the south pole, whose parts are in no order on the sky."""
    rng = np.random.default_rng(5)
    for index in range(N_PARTS):
        n = PART_LEN
        polar_N = rng.random(n) < 0.2
        ra_N = np.where(polar_N, rng.uniform(0, 360, n), rng.normal(0, 0.1, n) % 360)
        dec_N = np.where(polar_N, -90 + np.abs(rng.normal(0, 0.05, n)), 10 + rng.normal(0, 0.1, n))
        if index == 2:
            ra_N[:NOWHERE] = np.nan
        photoz_N = rng.uniform(0, 3, n).astype(np.float32)
        photoz_N[3] = np.nan
        shape = (n, len(SURVEY.bands), len(SURVEY.aperture_radii_arcsec))
        flux_NCR = rng.normal(0, 100, shape).astype(np.float32)
        flux_NCR[5, 1] = np.nan
        table = make_table(
            SURVEY,
            source_id_N=rng.permutation(n) * N_PARTS + index + 2**62,
            ra_N=ra_N,
            dec_N=dec_N,
            tile_id_N=np.full(n, f"tile-{'x' * index}"),
            photoz_N=photoz_N,
            quantile_NQ=photoz_N[:, None] + np.linspace(-0.3, 0.3, 9, dtype=np.float32),
            ood_N=np.full(n, 0.5, np.float32),
            photoz_flags_N=np.where(np.isnan(photoz_N), 8, 0),
            flux_NCR=flux_NCR,
            flux_err_NCR=np.abs(flux_NCR),
        )
        path = folder / "catalog" / f"part-{index:06d}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_part(table, path, {"index": index}, '{"command": "made by a test"}')
    return folder


def located_rows(catalogue: Path) -> pd.DataFrame:
    """The rows with a position, in the order of their identifiers."""
    frame = read_catalog(catalogue).to_pandas()
    return frame[np.isfinite(frame["ra"])].sort_values("source_id", ignore_index=True)
