"""What the image extensions of a FITS file are: the science image, its noise, its mask, or other.

By EXTNAME, or EXTTYPE where that is of no help: HST and JWST write SCI, ERR, DQ, WHT, VAR_POISSON
(JWST's user documentation, 'Science products'), LSST IMAGE, MASK, VARIANCE, DES SCI, MSK, WGT,
astropy's CCDData MASK and UNCERT, CEERS SCI_BKSUB beside SCI.
"""

import re
from typing import Any

from astropy.io import fits

from photozhpc.errors import MosaicError
from photozhpc.files.objects import AnyPath
from photozhpc.survey import Survey

NOISE_ROLES = ("err", "variance", "inverse_variance", "weight")
MASK_ROLES = ("mask", "dq")
PART_OF_VARIANCE = "variance of "  # VAR_POISSON and the like, which add up

_ROLES = {
    **dict.fromkeys(("SCI", "SCIENCE", "DATA", "IMAGE", "PRIMARY"), "image"),
    **dict.fromkeys(("ERR", "ERROR", "ERRORS", "RMS", "SIGMA", "UNC", "UNCERT"), "err"),
    **dict.fromkeys(("UNCERTAINTY", "STD", "STDDEV", "STDEV"), "err"),
    **dict.fromkeys(("VAR", "VARIANCE", "STAT"), "variance"),
    **dict.fromkeys(("IVM", "IVAR", "INVVAR", "INVVARIANCE"), "inverse_variance"),
    **dict.fromkeys(("WHT", "WEIGHT", "WEIGHTS", "WT", "WGT"), "weight"),
    **dict.fromkeys(("MASK", "MSK", "BPM", "FLAG", "FLAGS", "MASKBITS", "BADPIX"), "mask"),
    **dict.fromkeys(("DQ", "DQM"), "dq"),
}
# An extension with such a word in its name is not the science image, nor its noise or mask.
_ASIDE_WORDS = (
    "MODEL MOD RESID RESIDUAL RESIDUALS RAW PSF KERNEL SNR S2N BKG BKGD BACKGROUND SKY SEG SEGM "
    "SEGMAP SEGMENTATION CHI CHI2 PREVIEW THUMBNAIL NEXP EXP EXPTIME EXPMAP COV COVERAGE CTX CON "
    "CONTEXT DEPTH TEMPLATE THUMB"
)
_ASIDE = frozenset(_ASIDE_WORDS.split())
# What UNCERT is, in astropy's CCDData.
_UTYPES = {
    "StdDevUncertainty": "err",
    "VarianceUncertainty": "variance",
    "InverseVariance": "inverse_variance",
}

# The pupil wheel first: a filter in it (NIRCam's F470N, behind F444W) is narrower than the one in
# the filter wheel, and sets the band (JDox, NIRCam Filters; NIRISS has its short filters there).
_BAND_KEYS = ("PUPIL", "FILTER", "FILTER1", "FILTER2", "FILTNAM1", "FILTNAM2", "BAND")
_NO_FILTER = re.compile(r"CLEAR\w*|N/?A|NONE|OPEN|EMPTY|", re.IGNORECASE)
FILTER_NAME = re.compile(r"F\d{3,4}(W2|LP|[WMNX])", re.IGNORECASE)  # of HST and JWST

# HDUCLAS3 where HDUCLAS2 = 'ERROR' (ESO's Science Data Products Standard).
_ESO_ERRORS = {"MSE": "variance", "RMSE": "err", "INVMSE": "inverse_variance"}
# Files without a science image: PRODTYPE of NOIRLab's Community Pipeline, PRODCATG of ESO.
_NO_SCIENCE = re.compile(r"wtmap|dqmask|expmap|ANCILLARY\..*", re.IGNORECASE)

Groups = dict[tuple[str | None, int], dict[str, Any]]


def is_image(hdu: Any) -> bool:
    """Whether an HDU holds pixels in two axes or more."""
    kinds = (fits.PrimaryHDU, fits.ImageHDU, fits.CompImageHDU)
    return isinstance(hdu, kinds) and len(hdu.shape) >= 2 and 0 not in hdu.shape


def sort_planes(path: AnyPath, hdus: Any, survey: Survey) -> tuple[Groups, str]:
    """Sort the image HDUs of a file: (band or None, EXTVER) -> role -> HDU.

    Returns a note on science images that were passed over too, or an empty text.

    Raises:
        MosaicError: nothing says which of several is the science image.
    """
    images = [hdu for hdu in hdus if is_image(hdu)]
    chosen = _chosen(path, hdus, survey)
    kind = str(hdus[0].header.get("PRODTYPE", hdus[0].header.get("PRODCATG", ""))).strip()
    if chosen is None and _NO_SCIENCE.fullmatch(kind):
        raise MosaicError(
            f"{path}: by its header ('{kind}') it is not a science image; give the mosaic itself"
        )
    claims: dict[tuple[str | None, int], dict[str, list[Any]]] = {}
    for hdu in images:
        role, band = _role_and_band(hdu, survey)
        if hdu is chosen:
            role = "image"
        elif chosen is not None and role == "image":
            continue
        if role is None and len(images) == 1:
            if _ASIDE & set(_words(_label(hdu))):
                raise MosaicError(
                    f"{path}: its only image is called '{_label(hdu)}', not a science image; "
                    "give the mosaic itself, or set image_extension in the survey's YAML file"
                )
            role = "image"
        if role is not None:
            claims.setdefault((band, hdu.ver), {}).setdefault(role, []).append(hdu)
    # A primary image, or one without a name, beside a science extension is a preview or a copy.
    has_named_image = any(
        band is not None or bool(_label(hdu))
        for (band, _), roles in claims.items()
        for hdu in roles.get("image", ())
    )
    groups: Groups = {}
    passed_over: list[str] = []
    for (band, ver), roles in claims.items():
        planes = {role: hdus[0] for role, hdus in roles.items() if role != "image"}
        sciences = roles.get("image", [])
        if has_named_image and band is None and chosen is None:
            sciences = [hdu for hdu in sciences if _label(hdu)]
        if sciences:
            planes["image"] = best = _plainest(path, sciences)
            passed_over += [_label(hdu) for hdu in sciences if hdu is not best]
        if planes:
            groups[band, ver] = planes
    _merge_parts(groups)
    return groups, f"passed over {', '.join(passed_over)} of {path.name}" if passed_over else ""


def _chosen(path: AnyPath, hdus: Any, survey: Survey) -> Any:
    """Return the HDU that the survey's `image_extension` names, or None."""
    extension = survey.image_extension
    if extension is None:
        return None
    for index, hdu in enumerate(hdus):
        if is_image(hdu) and extension.lower() in (hdu.name.lower(), str(index)):
            return hdu
    names = ", ".join(hdu.name or str(index) for index, hdu in enumerate(hdus))
    raise MosaicError(
        f"{path}: image_extension of the survey '{survey.name}' is '{extension}', but the file has "
        f"{names}; correct it"
    )


def _plainest(path: AnyPath, sciences: list[Any]) -> Any:
    """Return the science image with the fewest words in its name: SCI, and not SCI_BKSUB.

    Raises:
        MosaicError: two are equally plain.
    """
    lengths = [len(_words(_label(hdu))) for hdu in sciences]
    plainest = [hdu for hdu, n in zip(sciences, lengths, strict=True) if n == min(lengths)]
    if len(plainest) > 1:
        names = ", ".join(_label(hdu) or "one without a name" for hdu in plainest)
        raise MosaicError(
            f"{path}: {len(plainest)} images could be the science image ({names}); set "
            "image_extension in the survey's YAML file, or name the extensions SCI, ERR, WHT, MASK"
        )
    return plainest[0]


def _label(hdu: Any) -> str:
    """Return EXTNAME, or EXTTYPE where there is none, or an empty text."""
    is_default = isinstance(hdu, fits.PrimaryHDU) and hdu.name == "PRIMARY"
    return str(hdu.header.get("EXTTYPE", "")) if is_default or not hdu.name else hdu.name


def _words(name: str) -> list[str]:
    return [word for word in re.split(r"[^A-Z0-9]+", name.upper()) if word]


def header_bands(*headers: Any) -> list[tuple[str, str]]:
    """Return (keyword, value) of the keywords that may name a band.

    Behind a filter in the pupil wheel, the filter in the filter wheel is not the band.
    """
    names = [
        (key, text)
        for header in headers
        for key in _BAND_KEYS
        for text in [str(header.get(key, "")).strip()]
        if not _NO_FILTER.fullmatch(text) and not text.isdigit()
    ]
    in_pupil = [(key, text) for key, text in names if key == "PUPIL"]
    others = [(key, text) for key, text in names if key != "PUPIL"]
    if any(FILTER_NAME.fullmatch(text) for _, text in in_pupil):
        return in_pupil + [(key, text) for key, text in others if key != "FILTER"]
    return others + in_pupil


def _role_of(words: list[str]) -> str | None:
    """Return the role that the words of a name state, or None."""
    roles = [_ROLES[word] for word in words if word in _ROLES]
    if "variance" in roles and {"INV", "INVERSE"} & set(words):
        return "inverse_variance"
    if words and _ROLES.get(words[0]) == "variance" and len(words) > 1 and len(roles) == 1:
        return PART_OF_VARIANCE + "_".join(words[1:])
    # What was subtracted is no longer in the image: SCI_SKY_SUB.
    aside = any(
        word in _ASIDE and not "".join(words[index + 1 :]).startswith("SUB")
        for index, word in enumerate(words)
    )
    if aside and "weight" not in roles:  # WHT_EXP: weights that are exposure times
        return None
    others = [role for role in roles if role != "image"]
    return others[-1] if others else (roles[-1] if roles else None)


def _role_and_band(hdu: Any, survey: Survey) -> tuple[str | None, str | None]:
    """Return the role and the band of an extension, by its name or its own header's FILTER."""
    role, band = _from_name(_label(hdu), hdu, survey)
    if role is None:
        role, band = _from_name(str(hdu.header.get("EXTTYPE", "")) or hdu.name, hdu, survey)
    if role is None and hdu.header.get("HDUCLASS") == "ESO":
        kinds = [str(hdu.header.get(f"HDUCLAS{i}", "")).strip().upper() for i in (2, 3)]
        role = {"DATA": "image", "QUALITY": "mask"}.get(kinds[0])
        if kinds[0] == "ERROR":
            role = _ESO_ERRORS.get(kinds[1])
    if role == "err":
        role = _UTYPES.get(str(hdu.header.get("UTYPE", "")), role)
    return role, band


def _from_name(name: str, hdu: Any, survey: Survey) -> tuple[str | None, str | None]:
    named_band = survey.find_band(name) if name else None
    if named_band is not None:
        return "image", named_band.name
    words = _words(name)
    bands = {word: match.name for word in words if (match := survey.find_band(word)) is not None}
    role = _role_of([word for word in words if word not in bands])
    is_aside = role is None and bool(_ASIDE & set(words))
    if isinstance(hdu, fits.PrimaryHDU):
        # Its FILTER is that of the whole file.
        return role or (None if is_aside else "image"), None
    band = next(iter(bands.values()), None)
    if band is None and not is_aside:
        stated = (survey.find_band(text) for _, text in header_bands(hdu.header))
        band = next((match.name for match in stated if match is not None), None)
    if role is None and not is_aside and (bands or not words):
        role = "image"
    return (None, None) if role is None else (role, band)


def _merge_parts(groups: Groups) -> None:
    """Give noise and masks that stand alone to the science image they belong to.

    A mask without a band belongs to all of them.
    """
    for band, ver in [key for key, planes in groups.items() if "image" not in planes]:
        sciences = [key for key, planes in groups.items() if "image" in planes]
        same_ver = [key for key in sciences if key[1] == ver]
        owners = same_ver if len(same_ver) == 1 else sciences
        if len(owners) == 1 and band in (None, owners[0][0]):
            planes = groups[owners[0]]
            for role, hdu in groups.pop((band, ver)).items():
                # lsst.images continues in MASK,2 where MASK,1 has no bits left.
                is_second = role in MASK_ROLES and role in planes
                planes.setdefault(f"{role} {ver}" if is_second else role, hdu)
        elif band is None and all(key[0] is not None for key in sciences):
            masks = {role: hdu for role, hdu in groups[band, ver].items() if role in MASK_ROLES}
            for key in sciences:
                groups[key] = {**masks, **groups[key]}
