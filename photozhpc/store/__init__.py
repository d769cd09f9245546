"""Sharded Zarr stores of cutouts."""

from photozhpc.store.cutout_store import CutoutStore, Measurements, ShardKey

__all__ = ["CutoutStore", "Measurements", "ShardKey"]
