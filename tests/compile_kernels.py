"""Compile the Numba kernels, once: they are kept for all later processes of this user.

python tests/compile_kernels.py     # `make test` does it first: no test waits for a compiler
"""

import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np

from photozhpc.extraction.detect import make_source_list
from photozhpc.extraction.extract import extract
from photozhpc.model.store_note import psf_widths
from photozhpc.mosaic.defects import find_defects
from photozhpc.sky import load_sky_config, simulate_sky
from photozhpc.survey import load_survey


def main() -> None:
    survey = load_survey("roman-sim")
    config = replace(load_sky_config(), tile_size_pix=512, bad_pixel_fraction=1e-3)
    with tempfile.TemporaryDirectory() as name:
        sky = Path(name) / "sky"
        simulate_sky(survey, sky, 1, 0, config, workers=1)
        make_source_list(survey, sky, Path(name) / "detected.parquet", workers=1)
        extract(survey, sky, Path(name) / "store", workers=1)
    image_NCSS = np.zeros((1, len(survey.bands), 32, 32), np.float32)
    find_defects(image_NCSS, 32, psf_widths(survey))


if __name__ == "__main__":
    main()
