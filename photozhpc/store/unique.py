"""Checks that the identifiers of a store are unique."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from photozhpc.errors import StoreError
from photozhpc.files.objects import is_remote
from photozhpc.store import CutoutStore, FluxTable, ShardKey

_THREADS = 4


def check_unique(store: CutoutStore | FluxTable) -> None:
    """Check that no identifier appears twice, except in a store behind a URL.

    It takes half a millisecond per shard and 8 bytes per source. Damaged shards are skipped:
    whoever reads their cutouts reports them.

    Raises:
        StoreError: an identifier appears twice.
    """
    if is_remote(store.path):
        return
    lengths = store.shard_lengths()
    id_N = np.empty(sum(lengths.values()), np.int64)
    n = 0
    with ThreadPoolExecutor(_THREADS) as pool:
        for part_M in pool.map(lambda key: _ids(store, key), lengths):
            id_N[n : n + len(part_M)] = part_M
            n += len(part_M)
    id_N = id_N[:n]
    id_N.sort()
    twice_N = id_N[1:] == id_N[:-1]
    if twice_N.any():
        if isinstance(store, FluxTable):
            raise StoreError(
                f"{store.path}: the identifier {id_N[1:][twice_N][0]} appears twice, as do "
                f"{np.count_nonzero(twice_N)} in all; remove the extra rows, or write "
                "source_columns: {source_id: null} into the survey's YAML file to number the rows"
            )
        raise StoreError(
            f"{store.path}: source_id {id_N[1:][twice_N][0]} appears twice in the store, as do "
            f"{np.count_nonzero(twice_N)} in all; run 'photozhpc verify' to see the tiles, and "
            "extract the store again from lists in which identifiers are unique"
        )


def _ids(store: CutoutStore | FluxTable, key: ShardKey) -> NDArray[np.int64]:
    try:
        return store.read_source_ids(key)
    except StoreError:
        return np.empty(0, np.int64)
