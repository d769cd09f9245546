"""Sharded Zarr stores of cutouts, and photometric catalogues in their place."""

from photozhpc.store.cutout_store import CutoutStore
from photozhpc.store.flux_table import FluxTable, open_store
from photozhpc.store.schema import Measurements, ShardKey

__all__ = ["CutoutStore", "FluxTable", "Measurements", "ShardKey", "open_store"]
