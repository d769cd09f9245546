"""photozhpc: survey mosaics in, photometric-redshift catalogues out."""

__version__ = "0.1.0"
