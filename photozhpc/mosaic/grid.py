"""Sky <-> pixel on a mosaic's grid, for FITS WCS (any projection, SIP, tables) and gwcs."""

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
from astropy.coordinates import BarycentricMeanEcliptic, BaseCoordinateFrame, SkyCoord
from astropy.time import Time
from astropy.utils.exceptions import AstropyWarning
from astropy.wcs import WCS
from astropy.wcs.utils import wcs_to_celestial_frame
from numpy.typing import ArrayLike, NDArray

from photozhpc.errors import MosaicError, one_line
from photozhpc.mosaic.band_image import DAMAGED

FloatN = NDArray[np.float64]

_ROUND_TRIP_PIX = 0.02
MAX_AXIS_RATIO = 1.05  # of the ellipse on the sky that is a circle of pixels
_SKY_FRAMES = ("icrs", "fk5", "fk4", "fk4noeterms", "galactic")


def sky_to_pixel(
    wcs: Any, shape_HW: tuple[int, int], ra_N: ArrayLike, dec_N: ArrayLike
) -> tuple[FloatN, FloatN]:
    """Project degrees to (y, x): zero-based, pixel centres on integers.

    RA and Dec are in the mosaic's own equatorial frame (ICRS and FK5 J2000 count as the same); for
    a galactic, ecliptic, FK4 or other FK5 grid they are ICRS and converted.

    Returns:
        y_N, x_N, float64; NaN where the position cannot be projected and back (the other
        hemisphere of a TAN, a polynomial without an inverse there).

    Raises:
        MosaicError: the WCS is in an unknown frame, or has no inverse.
    """
    ra, dec = np.broadcast_arrays(np.atleast_1d(ra_N), np.atleast_1d(dec_N))
    ra, dec = ra.astype(np.float64), dec.astype(np.float64)
    y, x = np.full(ra.shape, np.nan), np.full(ra.shape, np.nan)
    good = np.isfinite(ra) & np.isfinite(dec) & (np.abs(dec) <= 90)
    if not good.any():
        return y, x
    with _one_error("cannot turn sky positions into pixels"):
        lon, lat = _to_native_frame(wcs, ra[good], dec[good])
        if isinstance(wcs, WCS):
            x_good, y_good = _invert_fits(wcs, shape_HW, lon, lat)
        else:
            x_good, y_good = (_values(v) for v in wcs.invert(lon, lat, with_bounding_box=False))
        lon_back, lat_back = _forward(wcs, y_good, x_good)
        limit_deg = _ROUND_TRIP_PIX * float(np.sqrt(pixel_area_arcsec2(wcs, shape_HW)) / 3600)
        chord = np.linalg.norm(unit_vectors(lon, lat) - unit_vectors(lon_back, lat_back), axis=-1)
        separation_deg = np.degrees(2 * np.arcsin(np.minimum(chord / 2, 1)))
        lost = ~(separation_deg < limit_deg)
    y[good], x[good] = np.where(lost, np.nan, y_good), np.where(lost, np.nan, x_good)
    return y, x


def pixel_to_sky(wcs: Any, y_N: ArrayLike, x_N: ArrayLike) -> tuple[FloatN, FloatN]:
    """Return (ra_N, dec_N) in degrees of zero-based pixel positions; NaN where there is none.

    Raises:
        MosaicError: the WCS is in an unknown frame, or cannot be evaluated.
    """
    y, x = np.broadcast_arrays(np.atleast_1d(y_N), np.atleast_1d(x_N))
    with _one_error("cannot turn pixels into sky positions"):
        lon, lat = _forward(wcs, y.astype(np.float64), x.astype(np.float64))
        frame = _other_frame(wcs)
        if frame is not None:
            icrs = SkyCoord(lon, lat, unit="deg", frame=frame).icrs
            lon, lat = icrs.ra.deg, icrs.dec.deg
    return np.mod(lon, 360.0), lat


def pixel_area_arcsec2(wcs: Any, shape_HW: tuple[int, int]) -> float:
    """Return the solid angle of the pixel in the middle of the grid, arcsec^2, from the WCS."""
    along_x, along_y = _pixel_sides(wcs, shape_HW)
    return float(np.linalg.norm(np.cross(along_x, along_y))) * float(np.degrees(1) * 3600) ** 2


def check_square(wcs: Any, shape_HW: tuple[int, int]) -> None:
    """Make sure that a circle of pixels is a circle on the sky, in the middle of the grid.

    Apertures and cutouts are defined in pixels. With pixels 5% longer than wide, an aperture of
    1.25 FWHM loses less than 0.02% of a star's flux; with pixels twice as long as wide, 3%.

    Raises:
        MosaicError: the axes of the ellipse that a circle becomes differ by more than 5%.
    """
    axes = np.linalg.svd(np.stack(_pixel_sides(wcs, shape_HW)), compute_uv=False)
    if axes[0] > MAX_AXIS_RATIO * axes[1]:
        raise MosaicError(
            f"its pixels are not square: {axes[0] / axes[1]:.3g} times as long as wide on the sky; "
            "resample the mosaic to square pixels"
        )


def _pixel_sides(wcs: Any, shape_HW: tuple[int, int]) -> tuple[FloatN, FloatN]:
    """Return the steps of one pixel along x and y on the unit sphere, in the middle of the grid."""
    y, x = (shape_HW[0] - 1) / 2, (shape_HW[1] - 1) / 2
    lon, lat = _forward(wcs, np.array([y, y, y - 0.5, y + 0.5]), np.array([x - 0.5, x + 0.5, x, x]))
    vector = unit_vectors(lon, lat)
    return vector[1] - vector[0], vector[3] - vector[2]


def check_frame(wcs: Any) -> None:
    """Make sure that positions on the grid can be converted to ICRS.

    Raises:
        MosaicError: the frame is unknown, or not a celestial one.
    """
    with _one_error("has no celestial frame"):
        _other_frame(wcs)


@contextlib.contextmanager
def _one_error(fault: str) -> Iterator[None]:
    """Silence warnings, and turn errors of astropy and gwcs into a MosaicError."""
    try:
        with np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore", AstropyWarning)
            yield
    except DAMAGED as error:
        raise MosaicError(
            f"the WCS {fault} ({one_line(error)}); correct it, or resample the mosaic"
        ) from error


def grid_offset_pix(wcs: Any, other: Any, shape_HW: tuple[int, int]) -> float:
    """Return the largest distance, in pixels, between two grids at the corners and the middle."""
    height, width = shape_HW
    y = np.array([0, 0, height - 1, height - 1, (height - 1) / 2])
    x = np.array([0, width - 1, 0, width - 1, (width - 1) / 2])
    y_other, x_other = sky_to_pixel(other, shape_HW, *pixel_to_sky(wcs, y, x))
    offset = np.hypot(y_other - y, x_other - x)
    return float(np.max(np.where(np.isfinite(offset), offset, np.inf)))


def _forward(wcs: Any, y: FloatN, x: FloatN) -> tuple[FloatN, FloatN]:
    if isinstance(wcs, WCS):
        world = wcs.all_pix2world(x, y, 0)
        lon, lat = world[wcs.wcs.lng], world[wcs.wcs.lat]
    else:
        lon, lat = (_values(v) for v in wcs(x, y, with_bounding_box=False))
    return np.asarray(lon, np.float64), np.asarray(lat, np.float64)


def _invert_fits(
    wcs: WCS, shape_HW: tuple[int, int], lon: FloatN, lat: FloatN
) -> tuple[FloatN, FloatN]:
    x, y = wcs.wcs_world2pix(*_in_axis_order(wcs, lon, lat), 0)
    if not wcs.has_distortion:
        return x, y
    # A distortion is a polynomial (or table) fitted on the image: outside, it has no meaning and
    # may fold the sky back onto the tile. Far off the tile, the plain projection is used.
    height, width = shape_HW
    margin = 100 + max(height, width) // 4
    near = (y > -margin) & (y < height + margin) & (x > -margin) & (x < width + margin)
    if near.any():
        x[near], y[near] = wcs.all_world2pix(
            *_in_axis_order(wcs, lon[near], lat[near]), 0, tolerance=1e-6, maxiter=50, quiet=True
        )
    return x, y


def _in_axis_order(wcs: WCS, lon: FloatN, lat: FloatN) -> tuple[FloatN, FloatN]:
    """Return both in the header's order of world axes: some put the declination first."""
    return (lon, lat) if wcs.wcs.lng < wcs.wcs.lat else (lat, lon)


def unit_vectors(lon: FloatN, lat: FloatN) -> FloatN:
    """Return (N, 3): the directions of sky positions in degrees."""
    lon, lat = np.radians(lon), np.radians(lat)
    return np.stack([np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)], axis=-1)


def _values(coordinate: Any) -> FloatN:
    """Drop the unit of a Quantity (a gwcs may work in units; its axes are degrees and pixels)."""
    return np.asarray(getattr(coordinate, "value", coordinate), dtype=np.float64)


def _other_frame(wcs: Any) -> Any:
    """Return the frame of a grid that is not equatorial ICRS or FK5 J2000; else None.

    Raises:
        MosaicError: it cannot be converted to ICRS.
    """
    if isinstance(wcs, WCS):
        frame = _fits_frame(wcs)
    else:
        frame = getattr(getattr(wcs, "output_frame", None), "reference_frame", None)
        if not isinstance(frame, BaseCoordinateFrame):
            return None  # a gwcs need not have one; Roman's are ICRS
    if frame.name == "icrs" or (frame.name == "fk5" and abs(frame.equinox.jyear - 2000) < 0.01):
        return None
    return frame


def _fits_frame(wcs: WCS) -> Any:
    header = wcs.wcs
    if header.lngtyp == "ELON" and header.radesys.strip().upper() in ("", "ICRS", "FK5"):
        # astropy has no frame for an ecliptic grid; its equinox is J2000 unless it is stated.
        year = header.equinox if np.isfinite(header.equinox) else 2000.0
        return BarycentricMeanEcliptic(equinox=Time(year, format="jyear"))
    frame = wcs_to_celestial_frame(wcs)  # goes by RADESYS, whatever the axes are
    if frame.name not in _SKY_FRAMES or header.lngtyp not in ("RA", "GLON"):
        raise MosaicError(
            f"the WCS ({', '.join(header.ctype)}, RADESYS '{header.radesys}') has no celestial "
            "frame; resample the mosaic to ICRS"
        )
    return frame


def _to_native_frame(wcs: Any, ra: FloatN, dec: FloatN) -> tuple[FloatN, FloatN]:
    frame = _other_frame(wcs)
    if frame is None:
        return ra, dec
    native = SkyCoord(ra, dec, unit="deg", frame="icrs").transform_to(frame).spherical
    return native.lon.deg, native.lat.deg
