"""A photometric catalogue that is read like a store: sources and fluxes, without images.

A row group of a Parquet file is a shard, and is read by itself; of another format a shard is a
slice of the table, which is read as a whole.
"""

import hashlib
import json
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from photozhpc.config import to_mapping
from photozhpc.errors import ConfigError, SourceListError, StoreError
from photozhpc.files.objects import AnyPath, is_remote, location
from photozhpc.sources.dust import fill_ebv
from photozhpc.sources.fluxes import Fluxes, possible_names, read_fluxes
from photozhpc.sources.identifiers import read_identifiers
from photozhpc.sources.read import Sources, sources_of
from photozhpc.sources.redshifts import Remarks
from photozhpc.sources.table_file import TableFile, read_columns, row_group_lengths
from photozhpc.store.cutout_store import CutoutStore
from photozhpc.store.schema import Measurements, ShardKey, StoreIndex
from photozhpc.survey import SourceColumns, Survey, names_of

ROWS_PER_SHARD = 65_536  # of a table that is not Parquet
_WHAT = "photometric catalogue"
_EBV_MAP = "sfd"


class _Shard(NamedTuple):
    sources: Sources
    fluxes: Fluxes

    def rows(self, rows: slice) -> "_Shard":
        return _Shard(self.sources[rows], Fluxes(*(values[rows] for values in self.fluxes)))


@dataclass(frozen=True)
class TableIndex(StoreIndex):
    """A summary of a photometric catalogue, whose shards may differ in length."""

    lengths: dict[ShardKey, int] = field(default_factory=dict)

    def shard_lengths(self) -> dict[ShardKey, int]:
        return dict(self.lengths)


class FluxTable:
    """A photometric catalogue, with the reading methods of a `CutoutStore`.

    E(B-V) that it lacks is that of the map "sfd".

    Attributes:
        survey: says which columns hold what (`Survey.aperture_columns`, `total_columns`).
        cutout_size: 0: there are no images.
    """

    cutout_size = 0

    def __init__(self, path: Path, survey: Survey) -> None:
        self.path = path
        self.survey = survey
        self._groups = row_group_lengths(path)

    @classmethod
    def open(cls, path: str | AnyPath, survey: Survey) -> "FluxTable":
        """Open a catalogue, and read its first rows to see that it fits the survey.

        Raises:
            SourceListError: it is missing, damaged or empty, or does not have the columns that the
                survey names, or states unsuitable units for them.
            StoreError: it is behind a URL.
        """
        place = location(path)
        if is_remote(place):
            raise StoreError(f"{place}: a photometric catalogue is read from disk; download it")
        table = cls(Path(place), survey)
        lengths = table.shard_lengths()
        if not lengths:
            raise SourceListError(f"{place}: the photometric catalogue has no rows")
        table.read_sources(next(iter(lengths)))
        return table

    def index(self) -> StoreIndex:
        """Return the number of rows, and the fingerprint of the file and its columns."""
        return TableIndex(
            {self._tile: len(self)}, ROWS_PER_SHARD, self.fingerprint(), {}, self.shard_lengths()
        )

    def check_complete(self) -> StoreIndex:
        """Return the index: a file is always complete."""
        return self.index()

    def missing_tiles(self) -> list[str]:
        return []

    def __len__(self) -> int:
        return sum(self.shard_lengths().values())

    def shards(self) -> list[ShardKey]:
        return list(self.shard_lengths())

    def shard_lengths(self) -> dict[ShardKey, int]:
        """Return the number of rows of every shard."""
        lengths = self._groups
        if lengths is None:
            n = len(self._whole().sources)
            lengths = [min(ROWS_PER_SHARD, n - first) for first in range(0, n, ROWS_PER_SHARD)]
        return {ShardKey(self._tile, i): n for i, n in enumerate(lengths) if n}

    def fingerprint(self) -> str:
        """Return a digest of the file and of the survey."""
        about = json.dumps([self.path.name, to_mapping(self.survey)])
        return hashlib.sha256(f"{about} {_sha256(self.path, self._stamp())}".encode()).hexdigest()

    def read_sources(self, key: ShardKey) -> Sources:
        """Return the sources of a shard; errors as `open`."""
        return self._shard(key).sources

    def read_source_ids(self, key: ShardKey) -> NDArray[np.int64]:
        return self.read_sources(key).source_id_N

    def read_measurements(self, key: ShardKey) -> Measurements:
        """Return the fluxes of a shard; positions in pixels are NaN, flags 0. Errors as `open`."""
        fluxes = self._shard(key).fluxes
        nowhere_N = np.full(len(fluxes.flux_NCR), np.nan)
        flags_NC = np.zeros(fluxes.flux_NCR.shape[:2], np.uint16)
        return Measurements(
            nowhere_N,
            nowhere_N,
            fluxes.flux_NCR,
            fluxes.flux_err_NCR,
            flags_NC,
            fluxes.total_flux_NC,
            fluxes.total_flux_err_NC,
        )

    @cached_property
    def column_names(self) -> list[str]:
        """The names of all its columns, used or not."""
        group = None if self._groups is None else 0
        return read_columns(self.path, _WHAT, lambda name: False, group).names

    def has_column(self, *names: str) -> bool:
        """Whether it has one of these columns; case does not matter."""
        return bool({n.lower() for n in names} & {n.lower() for n in self.column_names})

    def notes(self) -> list[str]:
        """Return lines about values of the catalogue that were not used; reads all of it."""
        remarks = Remarks()
        groups = [None] if self._groups is None else [key.index for key in self.shards()]
        for group in groups:
            _read(self.path, self.survey, group, 0, remarks)
        return remarks.lines()

    @property
    def _tile(self) -> str:
        return self.path.name.partition(".")[0]

    def _shard(self, key: ShardKey) -> _Shard:
        if self._groups is not None:
            first = sum(self._groups[: key.index])
            return _cached(self.path, self.survey, key.index, first, self._stamp())
        first = key.index * ROWS_PER_SHARD
        return self._whole().rows(slice(first, first + ROWS_PER_SHARD))

    def _whole(self) -> _Shard:
        return _cached(self.path, self.survey, None, 0, self._stamp())

    def _stamp(self) -> tuple[int, int]:
        """Return what tells that the file has changed."""
        try:
            stat = self.path.stat()
        except OSError as error:
            raise SourceListError(f"{self.path}: no such {_WHAT}") from error
        return stat.st_size, stat.st_mtime_ns


@lru_cache(maxsize=4)
def _sha256(path: Path, stamp: tuple[int, int]) -> str:
    """Return the SHA-256 of a file, which is read whole: about a second per GB."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@lru_cache(maxsize=2)
def _cached(
    path: Path, survey: Survey, row_group: int | None, first_row: int, stamp: tuple[int, int]
) -> _Shard:
    """Read as `_read`; `stamp` makes a file that has changed be read again."""
    return _read(path, survey, row_group, first_row, Remarks())


def _read(
    path: Path, survey: Survey, row_group: int | None, first_row: int, remarks: Remarks
) -> _Shard:
    """Read a row group, or all rows.

    Args:
        first_row: number of its first row, for a catalogue without identifiers.
    """
    columns = survey.source_columns
    wanted = {name.lower() for value in vars(columns).values() for name in names_of(value)}
    wanted |= possible_names(survey)
    table = read_columns(path, _WHAT, lambda name: name.lower() in wanted, row_group)
    id_N, note = read_identifiers(table, columns, is_only_list=True, list_name=path.stem)
    id_name = _first(table, columns)
    if id_name is not None and table.columns[id_name].dtype.kind in "OSU":
        remarks.add(
            len(id_N),
            f"identifiers in '{id_name}' are text; source_id is a number made of each, and the "
            f"rows keep their order",
        )
    elif note is not None:
        id_N = id_N + first_row
        remarks.add(len(id_N), "rows have no identifiers and are numbered from 0")
    labels = dict.fromkeys(names_of(columns.z_spec), 0)
    sources = sources_of(table, columns, id_N, survey.z_spec_max, remarks, labels)
    return _Shard(fill_ebv(sources, _EBV_MAP), read_fluxes(table, survey, remarks))


def _first(table: TableFile, columns: SourceColumns) -> str | None:
    """Return the column of the identifiers."""
    found = (table.find(name) for name in names_of(columns.source_id))
    return next((column for column in found if column is not None), None)


def open_store(path: str | AnyPath, survey: Survey | None = None) -> CutoutStore | FluxTable:
    """Open a store, or a photometric catalogue, which is a file.

    Args:
        survey: says which columns of a catalogue hold what; a store has its own.

    Raises:
        StoreError: it is missing or damaged.
        ConfigError: it is a file, and the survey does not say what its columns are.
        SourceListError: as `FluxTable.open`.
    """
    place = location(path)
    describes_tables = survey is not None and survey.has_flux_columns
    if describes_tables and not is_remote(place) and not place.exists():
        raise SourceListError(f"{place}: no such photometric catalogue")
    if is_remote(place) or not place.is_file():
        return CutoutStore.open(place)
    if survey is None or not describes_tables:
        name = "the survey" if survey is None else f"survey '{survey.name}'"
        raise ConfigError(
            f"{place}: is a file; to read it as a photometric catalogue, {name} must say which "
            f"columns hold the fluxes: write aperture_columns or total_columns into its YAML file "
            f"and pass that with --survey"
        )
    return FluxTable.open(place, survey)
