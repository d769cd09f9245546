"""What the image extensions of a FITS file are: the science image, its noise, its mask, or neither.

By EXTNAME, or EXTTYPE where that says nothing: HST and JWST write SCI, ERR, DQ, WHT and VAR_POISSON
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
PART_OF_VARIANCE = "variance of "  # VAR_POISSON and its like: they add up

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
# What such a word is said of is not the science image, nor its noise or mask.
_ASIDE_WORDS = (
    "MODEL MOD RESID RESIDUAL RESIDUALS RAW PSF KERNEL SNR S2N BKG BKGD BACKGROUND SKY SEG SEGM "
    "SEGMAP SEGMENTATION CHI CHI2 PREVIEW THUMBNAIL NEXP EXP EXPTIME EXPMAP COV COVERAGE CTX CON "
    "CONTEXT DEPTH TEMPLATE THUMB"
)
_ASIDE = frozenset(_ASIDE_WORDS.split())
# astropy's CCDData says of UNCERT what it is.
_UTYPES = {
    "StdDevUncertainty": "err",
    "VarianceUncertainty": "variance",
    "InverseVariance": "inverse_variance",
}

# The pupil wheel first: a filter in it (NIRCam's F470N, behind F444W) is narrower than the other
# wheel's, and says the band (JDox, NIRCam Filters; NIRISS has its short filters there).
_BAND_KEYS = ("PUPIL", "FILTER", "FILTER1", "FILTER2", "FILTNAM1", "FILTNAM2", "BAND")
_NO_FILTER = re.compile(r"CLEAR\w*|N/?A|NONE|OPEN|EMPTY|", re.IGNORECASE)
FILTER_NAME = re.compile(r"F\d{3,4}(W2|LP|[WMNX])", re.IGNORECASE)  # of HST and JWST

# Of ESO's data products (Science Data Products Standard): HDUCLAS3 of HDUCLAS2 = 'ERROR'.
_ESO_ERRORS = {"MSE": "variance", "RMSE": "err", "INVMSE": "inverse_variance"}
# Of whole files: NOIRLab's Community Pipeline (PRODTYPE), ESO (PRODCATG).
_NO_SCIENCE = re.compile(r"wtmap|dqmask|expmap|ANCILLARY\..*", re.IGNORECASE)

Groups = dict[tuple[str | None, int], dict[str, Any]]


def is_image(hdu: Any) -> bool:
    """Whether an HDU holds pixels in two axes or more."""
    kinds = (fits.PrimaryHDU, fits.ImageHDU, fits.CompImageHDU)
    return isinstance(hdu, kinds) and len(hdu.shape) >= 2 and 0 not in hdu.shape


def sort_planes(path: AnyPath, hdus: Any, survey: Survey) -> tuple[Groups, str]:
    """Sort the image HDUs of a file: (band or None, EXTVER) -> role -> HDU.

    Returns a note on what was passed over, too.

    Raises:
        MosaicError: nothing says which of several is the science image.
    """
    images = [hdu for hdu in hdus if is_image(hdu)]
    chosen = _chosen(path, hdus, survey)
    kind = str(hdus[0].header.get("PRODTYPE", hdus[0].header.get("PRODCATG", ""))).strip()
    if chosen is None and _NO_SCIENCE.fullmatch(kind):
        raise MosaicError(f"{path}: is no science image, by its header ('{kind}')")
    claims: dict[tuple[str | None, int], dict[str, list[Any]]] = {}
    for hdu in images:
        role, band = _role_and_band(hdu, survey)
        if chosen is not None and (hdu is chosen or role == "image"):
            role = "image" if hdu is chosen else None
            if role is None:
                continue
        if role is None and len(images) == 1:
            if _ASIDE & set(_words(_label(hdu))):
                raise MosaicError(
                    f"{path}: its only image is called '{_label(hdu)}', which is no science image; "
                    "give the mosaic itself, or set image_extension in the survey's YAML file"
                )
            role = "image"
        if role is not None:
            claims.setdefault((band, hdu.ver), {}).setdefault(role, []).append(hdu)
    # A primary image, or one without a name, beside a science extension is a preview or a copy.
    is_said = any(
        band is not None or bool(_label(hdu))
        for (band, _), roles in claims.items()
        for hdu in roles.get("image", ())
    )
    groups: Groups = {}
    passed_over: list[str] = []
    for (band, ver), roles in claims.items():
        planes = {role: hdus[0] for role, hdus in roles.items() if role != "image"}
        sciences = roles.get("image", [])
        if is_said and band is None and chosen is None:
            sciences = [hdu for hdu in sciences if _label(hdu)]
        if sciences:
            planes["image"] = best = _plainest(path, sciences)
            passed_over += [_label(hdu) for hdu in sciences if hdu is not best]
        if planes:
            groups[band, ver] = planes
    _merge_parts(groups)
    return groups, f"passed over {', '.join(passed_over)} of {path.name}" if passed_over else ""


def _chosen(path: AnyPath, hdus: Any, survey: Survey) -> Any:
    """Return the HDU that the survey says is the science image; None: it says nothing."""
    wanted = survey.image_extension
    if wanted is None:
        return None
    for index, hdu in enumerate(hdus):
        if is_image(hdu) and wanted.lower() in (hdu.name.lower(), str(index)):
            return hdu
    names = ", ".join(hdu.name or str(index) for index, hdu in enumerate(hdus))
    raise MosaicError(
        f"{path}: image_extension of the survey '{survey.name}' is '{wanted}', and the file has "
        f"{names}"
    )


def _plainest(path: AnyPath, sciences: list[Any]) -> Any:
    """Of several science images the one with the shortest name: SCI, and not SCI_BKSUB.

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
    """EXTNAME, or EXTTYPE where there is none; empty: neither."""
    is_default = isinstance(hdu, fits.PrimaryHDU) and hdu.name == "PRIMARY"
    return str(hdu.header.get("EXTTYPE", "")) if is_default or not hdu.name else hdu.name


def _words(name: str) -> list[str]:
    return [word for word in re.split(r"[^A-Z0-9]+", name.upper()) if word]


def header_bands(*headers: Any) -> list[tuple[str, str]]:
    """(keyword, value) of the keywords that may name a band.

    Behind a filter in the pupil wheel, what the filter wheel holds names none.
    """
    found = [
        (key, text)
        for header in headers
        for key in _BAND_KEYS
        for text in [str(header.get(key, "")).strip()]
        if not _NO_FILTER.fullmatch(text) and not text.isdigit()
    ]
    in_pupil = [(key, text) for key, text in found if key == "PUPIL"]
    others = [(key, text) for key, text in found if key != "PUPIL"]
    if any(FILTER_NAME.fullmatch(text) for _, text in in_pupil):
        others = [(key, text) for key, text in others if key != "FILTER"]
        return in_pupil + others
    return others + in_pupil


def _role_of(words: list[str]) -> str | None:
    """Return the role that the words of a name say, or None."""
    roles = [_ROLES[word] for word in words if word in _ROLES]
    if "variance" in roles and {"INV", "INVERSE"} & set(words):
        return "inverse_variance"
    if words and _ROLES.get(words[0]) == "variance" and len(words) > 1 and len(roles) == 1:
        return PART_OF_VARIANCE + "_".join(words[1:])
    # What is subtracted is no longer in the image: SCI_SKY_SUB.
    aside = any(
        word in _ASIDE and not "".join(words[index + 1 :]).startswith("SUB")
        for index, word in enumerate(words)
    )
    if aside and "weight" not in roles:  # WHT_EXP: weights that are exposure times
        return None
    others = [role for role in roles if role != "image"]
    return others[-1] if others else (roles[-1] if roles else None)


def _role_and_band(hdu: Any, survey: Survey) -> tuple[str | None, str | None]:
    """Return what an extension is and of which band: by its name, or its own header's FILTER."""
    role = band = None
    for name in dict.fromkeys((_label(hdu), str(hdu.header.get("EXTTYPE", "")) or hdu.name)):
        if role is None and band is None:
            role, band = _of_name(name, hdu, survey)
    if role is None and hdu.header.get("HDUCLASS") == "ESO":
        kinds = [str(hdu.header.get(f"HDUCLAS{i}", "")).strip().upper() for i in (2, 3)]
        role = {"DATA": "image", "QUALITY": "mask"}.get(kinds[0])
        if kinds[0] == "ERROR":
            role = _ESO_ERRORS.get(kinds[1])
    if role == "err":
        role = _UTYPES.get(str(hdu.header.get("UTYPE", "")), role)
    return role, band


def _of_name(name: str, hdu: Any, survey: Survey) -> tuple[str | None, str | None]:
    whole = survey.find_band(name) if name else None
    if whole is not None:
        return "image", whole.name
    words = _words(name)
    bands = {word: found.name for word in words if (found := survey.find_band(word)) is not None}
    role = _role_of([word for word in words if word not in bands])
    is_aside = role is None and bool(_ASIDE & set(words))
    if isinstance(hdu, fits.PrimaryHDU):
        # Its FILTER is of the whole file.
        return role or (None if is_aside else "image"), None
    band = next(iter(bands.values()), None)
    if band is None and not is_aside:
        stated = (survey.find_band(text) for _, text in header_bands(hdu.header))
        band = next((found.name for found in stated if found is not None), None)
    if role is None and not is_aside and (bands or not words):
        role = "image"
    return (None, None) if role is None else (role, band)


def _merge_parts(groups: Groups) -> None:
    """Give error planes without a band of their own to the science image they belong to.

    A mask without a band is of all of them.
    """
    for key in [key for key, planes in groups.items() if "image" not in planes]:
        homes = [k for k, planes in groups.items() if "image" in planes]
        same = [k for k in homes if k[1] == key[1]]
        home = same if len(same) == 1 else homes
        if len(home) == 1 and key[0] in (None, home[0][0]):
            planes = groups[home[0]]
            for role, hdu in groups.pop(key).items():
                # lsst.images goes on in MASK,2 where MASK,1 has no bits left.
                more = f"{role} {key[1]}" if role in MASK_ROLES and role in planes else role
                planes.setdefault(more, hdu)
        elif key[0] is None and all(k[0] is not None for k in homes):
            masks = {role: hdu for role, hdu in groups[key].items() if role in MASK_ROLES}
            for k in homes:
                groups[k] = {**masks, **groups[k]}
