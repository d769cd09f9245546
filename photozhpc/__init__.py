"""photozhpc: survey mosaics in, photometric-redshift catalogues out."""

from photozhpc.files.code_cache import keep_numba_code

__version__ = "0.1.0"

keep_numba_code()  # before any module imports Numba
