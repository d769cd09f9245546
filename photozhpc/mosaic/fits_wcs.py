"""The WCS of a FITS mosaic, with the repairs that real headers need."""

from typing import Any

from astropy.io import fits
from astropy.wcs import WCS

from photozhpc.errors import MosaicError
from photozhpc.files.objects import AnyPath

_DISTORTED = ("-TPV", "-TNX", "-ZPX", "-TPD", "-TPU")  # projections with polynomials


def celestial_wcs(path: AnyPath, hdus: Any, image: Any) -> WCS | None:
    """Return the celestial WCS of a science image, or of the primary header, or None."""
    for header in (image.header, hdus[0].header):
        if "CTYPE1" not in header:
            continue
        # Drizzled mosaics (CANDELS) keep the coefficients of an exposure's distortion, which their
        # pixels no longer have, and astropy applies them. The SIP standard asks for -SIP in CTYPE.
        header = header.copy()
        if not str(header["CTYPE1"]).strip().upper().endswith("-SIP"):
            for key in ("A_ORDER", "B_ORDER", "AP_ORDER", "BP_ORDER"):
                header.remove(key, ignore_missing=True)
        _name_tpv(path, header)
        wcs = WCS(header, fobj=hdus, naxis=2)
        if wcs.has_celestial:
            return wcs
    return None


def _name_tpv(path: AnyPath, header: fits.Header) -> None:
    """Rename the projection of SCAMP's headers to TPV.

    SCAMP writes its polynomial as PVi_m under -TAN. astropy recognises it by terms above the
    fourth (Shupe et al. 2012, section 7), so not where it is linear. -TAN has no PV of the
    latitude (Calabretta & Greisen 2002, section 5.1.3): where there is one, it is SCAMP's. Under
    -TAN-SIP (PTF) it repeats the same distortion.

    Raises:
        MosaicError: the declination comes first, and wcslib would swap the axes of a distortion.
    """
    types = {axis: str(header.get(f"CTYPE{axis}", "")).strip().upper() for axis in (1, 2)}
    latitude = next((axis for axis, name in types.items() if "LAT" in name or "DEC" in name), 2)
    values = [header[key] for key in header[f"PV{latitude}_*"]]
    is_scamp = any(isinstance(value, int | float) and value for value in values)
    for axis, name in types.items() if is_scamp else ():
        if name.endswith("-TAN-SIP"):
            for key in list(header[f"PV{axis}_*"]):
                del header[key]
        elif name.endswith("-TAN"):
            header[f"CTYPE{axis}"] = f"{name[:-4]}-TPV"
            header.setdefault(f"PV{axis}_1", 1.0)
    if latitude == 1 and header["CTYPE1"].strip().endswith(_DISTORTED):
        raise MosaicError(
            f"{path}: the WCS ({header['CTYPE1']}, {header['CTYPE2']}) has the declination first, "
            "which wcslib misreads; write the right ascension first"
        )
