"""Source lists and truth tables: Parquet, FITS, ECSV and CSV."""

import datetime
import decimal
import io
import warnings
from random import Random
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from astropy.table import MaskedColumn, Table
from harness import AS_IT_SAYS, Damage, Target
from mutate import mangle, mutate_fits, mutate_lines

from photozhpc.evaluation.truth import Truth, read_truth
from photozhpc.sources.read import Sources, read_sources
from photozhpc.survey import SourceColumns

N = 40
_FORMATS = {"fits": "fits", "ecsv": "ascii.ecsv", "csv": "ascii.csv"}


def table() -> Table:
    rng = np.random.default_rng(0)
    z_N = rng.uniform(0.1, 3, N)
    return Table(
        {
            "source_id": np.arange(N) + 10**12,
            "ra": rng.uniform(150, 151, N),
            "dec": rng.uniform(2, 3, N),
            "z_spec": MaskedColumn(z_N, mask=np.arange(N) % 3 == 0),
            "z_true": z_N,
            "ebv": rng.uniform(0, 0.1, N),
            "mag_f158": rng.uniform(20, 25, N),
            "is_star": (np.arange(N) % 5 == 0).astype(np.int8),
            "name": [f"s{i}" for i in range(N)],
        }
    )


def ill_typed(rng: Random) -> pa.Array:
    """A column of N values of a type that is not expected."""
    some = list(range(N))
    text = [str(i) for i in some]
    make: tuple[Any, ...] = (
        lambda: pa.nulls(N),
        lambda: pa.nulls(N, pa.int64()),
        lambda: pa.array(text),
        lambda: pa.array(["x", *text[1:]]),
        lambda: pa.array(text).dictionary_encode(),
        lambda: pa.array([i % 2 == 0 for i in some]),
        lambda: pa.array([2**64 - 1 - i for i in some], pa.uint64()),
        lambda: pa.array([None, *some[1:]], pa.int32()),
        lambda: pa.array(np.arange(N, dtype=np.float16)),
        lambda: pa.array([np.nan, np.inf, -np.inf, 1e308, *some[4:]], pa.float64()),
        lambda: pa.array([decimal.Decimal(i) for i in some]),
        lambda: pa.array([datetime.datetime(2020, 1, 1)] * N),
        lambda: pa.array([datetime.date(2020, 1, 1)] * N),
        lambda: pa.array([datetime.timedelta(i) for i in some]),
        lambda: pa.array([[i] for i in some]),
        lambda: pa.array([[i] * (i % 3) for i in some]),
        lambda: pa.FixedSizeListArray.from_arrays(pa.array(some * 2), 2),
        lambda: pa.array([{"a": i} for i in some]),
        lambda: pa.array([b"\xff"] * N),
        lambda: pa.array([0] * N),
        lambda: pa.array([-99.0] * N),
        lambda: pa.array([10**18 + i for i in some]),
    )
    return rng.choice(make)()


def change_columns(sound: pa.Table, rng: Random) -> pa.Table:
    """Give a table a column of another type, a name twice, no rows, or take a column away."""
    kind = rng.randrange(8)
    at = rng.randrange(sound.num_columns)
    if kind == 0:
        return sound.remove_column(at)
    if kind == 1:
        return sound.append_column(sound.column_names[at], sound.column(at))
    if kind == 2:
        return sound.slice(0, rng.choice((0, 1)))
    if kind == 3:
        names = list(sound.column_names)
        names[at] = rng.choice(("", "a\nb", "SOURCE_ID", "RA", "\x1b[2J", "x" * 3000))
        return sound.rename_columns(names)
    return sound.set_column(at, sound.column_names[at], ill_typed(rng))


class SourceLists(Target):
    cases = 180
    weight = 8.0

    def make(self) -> None:
        sound = table()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.parquet = pa.Table.from_pandas(sound.to_pandas(), preserve_index=False)
            pq.write_table(self.parquet, self.folder / "a.parquet", write_page_checksum=True)
            for end, kind in _FORMATS.items():
                sound.write(self.folder / f"a.{end}", format=kind)

    def damage(self, rng: Random) -> Damage:
        name = rng.choice(list(self.files))
        content = self.files[name]
        kind = rng.random()
        if kind < 0.4:
            return Damage(name, mangle(content, rng))
        if name == "a.parquet":
            out = io.BytesIO()
            pq.write_table(change_columns(self.parquet, rng), out)
            return Damage(name, out.getvalue(), sealed=True)
        if name == "a.fits":
            return Damage(name, mutate_fits(content, rng), sealed=True)
        return Damage(name, mutate_lines(content, rng), sealed=True)

    def read(self, damage: Damage) -> Any:
        return read_sources([self.folder / damage.name], SourceColumns())

    def judge(self, damage: Damage, found: Any) -> str:
        assert isinstance(found, Sources)
        assert len(np.unique(found.source_id_N)) == len(found), "an identifier twice"
        assert not (found.z_spec_N <= 0).any(), "a redshift that is none"
        assert np.isfinite(found.ebv_N).all(), "an E(B-V) that is none"
        assert damage.sealed or damage.name != "a.parquet" or len(found) == N, "rows are lost"
        return AS_IT_SAYS


class TruthTables(SourceLists):
    cases = 120

    def read(self, damage: Damage) -> Any:
        return read_truth([self.folder / damage.name])

    def judge(self, damage: Damage, found: Any) -> str:
        assert isinstance(found, Truth)
        assert (np.diff(found.source_id_N) > 0).all(), "not sorted, or an identifier twice"
        assert (found.z_ref_N > 0).all(), "a redshift that is none"
        return AS_IT_SAYS
