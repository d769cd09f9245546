"""Mosaics: calibrated tiles from FITS and ASDF files, and the kernels that measure them."""
