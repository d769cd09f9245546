"""Roman level-3 mosaic files: WCS and ASDF writing with roman_datamodels."""

import inspect
from pathlib import Path

import asdf
import gwcs
import gwcs.coordinate_frames as frames
import numpy as np
from astropy import units
from astropy.coordinates import ICRS
from astropy.modeling import models
from astropy.time import Time

from photozhpc.files.asdf_extensions import load_extensions
from photozhpc.files.disk import replacing
from photozhpc.sky.observe import Observed

NJY_TO_MJY = 1e-15
# MD5 sums take a quarter of a tile's time, and a lost tile can be simulated again. Before version
# 6, asdf always writes them.
NO_CHECKSUMS: dict[str, bool] = (
    {"write_checksums": False}
    if "write_checksums" in inspect.signature(asdf.AsdfFile.write_to).parameters
    else {}
)


def tile_wcs(ra_deg: float, dec_deg: float, size: int, pixel_scale_arcsec: float) -> gwcs.WCS:
    """Return a tile's gnomonic WCS, north up and east to the left; pixel centres on integers."""
    middle = (size - 1) / 2.0
    scale = pixel_scale_arcsec / 3600.0
    transform = (
        (models.Shift(-middle) & models.Shift(-middle))
        | (models.Scale(-scale) & models.Scale(scale))
        | models.Pix2Sky_TAN()
        | models.RotateNative2Celestial(ra_deg, dec_deg, 180.0)
    )
    detector = frames.Frame2D(name="detector", axes_order=(0, 1), unit=(units.pix, units.pix))
    sky = frames.CelestialFrame(reference_frame=ICRS(), name="icrs", unit=(units.deg, units.deg))
    wcs = gwcs.WCS([(detector, transform), (sky, None)])
    wcs.bounding_box = ((-0.5, size - 0.5), (-0.5, size - 0.5))
    return wcs


def write_mosaic(
    path: Path,
    observed: Observed,
    band: str,
    wcs: gwcs.WCS,
    centre_deg: tuple[float, float],
    pixel_scale_arcsec: float,
    exposure_time_s: float,
) -> None:
    """Write one band of a tile as a Roman L3 mosaic, MJy/sr; atomic.

    The planes other than the data are compressed with LZ4, which roman_datamodels requires.
    """
    load_extensions()
    from roman_datamodels import datamodels  # slow to import, and few processes write mosaics

    size = observed.data_HW.shape[0]
    solid_angle_sr = (pixel_scale_arcsec / 3600.0 * np.pi / 180.0) ** 2
    to_mjy_sr = np.float32(NJY_TO_MJY / solid_angle_sr)
    model = datamodels.MosaicModel.create_fake_data(shape=(1, 8, 8))
    data_HW = observed.data_HW * to_mjy_sr
    model.data = data_HW
    model.err = observed.err_HW * to_mjy_sr
    model.weight = observed.weight_HW
    model.context = (observed.weight_HW > 0).astype(np.uint32)[None]
    model.var_poisson = observed.var_poisson_HW * to_mjy_sr**2
    model.var_rnoise = observed.var_rnoise_HW * to_mjy_sr**2
    meta = model.meta
    start = Time("2027-01-01T00:00:00", format="isot", scale="utc")
    meta.filename = path.name
    meta.product_type = "coadd"
    meta.calibration_software_name = "photozhpc.sky"
    meta.coadd_info.exposure_time = exposure_time_s
    meta.coadd_info.time_first = start
    meta.coadd_info.time_last = start + exposure_time_s * units.s
    meta.coadd_info.time_mean = start + 0.5 * exposure_time_s * units.s
    meta.instrument.optical_element = band
    meta.program.title = "photozhpc simulated sky"
    for step in ("flux", "outlier_detection", "resample", "skymatch"):
        meta.cal_step[step] = "COMPLETE"
    meta.resample.pixel_scale_ratio = pixel_scale_arcsec / 0.11
    meta.resample.pixfrac = 1.0
    meta.resample.weight_type = "exptime"
    good_HW = observed.weight_HW > 0
    meta.statistics.good_pixel_fraction = float(np.mean(good_HW))
    sample = data_HW[::8, ::8][good_HW[::8, ::8]]
    meta.statistics.image_median = float(np.median(sample))
    meta.statistics.image_rms = float(np.std(sample))
    meta.wcs = wcs
    _fill_wcsinfo(meta.wcsinfo, wcs, size, centre_deg, pixel_scale_arcsec)
    with replacing(path) as partial, asdf.AsdfFile({"roman": model._instance}) as file:
        for name in ("err", "weight", "context", "var_poisson", "var_rnoise"):
            file.set_array_compression(file["roman"][name], "lz4")
        file.write_to(partial, **NO_CHECKSUMS)


def _fill_wcsinfo(
    info: dict, wcs: gwcs.WCS, size: int, centre_deg: tuple[float, float], scale: float
) -> None:
    corners = [wcs(x, y) for x, y in ((0, 0), (size - 1, 0), (size - 1, size - 1), (0, size - 1))]
    ring = " ".join(f"{ra:.9f} {dec:.9f}" for ra, dec in corners)
    info["ra_ref"], info["dec_ref"] = centre_deg
    info["ra"], info["dec"] = centre_deg
    info["x_ref"] = info["y_ref"] = (size - 1) / 2.0
    info["pixel_scale"] = info["pixel_scale_ref"] = scale
    info["orientation"] = info["orientation_ref"] = 0.0
    info["image_shape"] = [size, size]
    info["projection"] = "TAN"
    info["s_region"] = f"POLYGON ICRS {ring}"
    info["rotation_matrix"] = [[-1.0, 0.0], [0.0, 1.0]]
