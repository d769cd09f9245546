"""Sharded Zarr stores of cutouts."""

from photozhpc.store.cutout_store import CutoutStore
from photozhpc.store.schema import Measurements, ShardKey

__all__ = ["CutoutStore", "Measurements", "ShardKey"]
