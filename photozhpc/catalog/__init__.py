"""The photo-z catalogue: inference over a whole store, and its Parquet schema."""

from photozhpc.catalog.pdf import PdfPart, pdf_parts, read_pdf
from photozhpc.catalog.photoz_catalog import PhotozFlag, catalog_parts, catalog_schema, read_catalog

__all__ = [
    "PdfPart",
    "PhotozFlag",
    "catalog_parts",
    "catalog_schema",
    "pdf_parts",
    "read_catalog",
    "read_pdf",
]
