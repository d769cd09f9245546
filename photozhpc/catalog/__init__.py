"""The photo-z catalogue: inference over a whole store, and its Parquet schema."""

from photozhpc.catalog.photoz_catalog import (
    PhotozFlag,
    catalog_parts,
    catalog_schema,
    read_catalog,
)

__all__ = ["PhotozFlag", "catalog_parts", "catalog_schema", "read_catalog"]
