"""The weight, error and mask files beside a mosaic, found by their names.

Such a name is the mosaic's with one word added (SWarp: coadd.fits, coadd.weight.fits; HST:
x_drz.fits, x_drz_wht.fits) or replaced (x_drz.fits, x_wht.fits; Legacy Surveys: -image-,
-invvar-; DECam's pipeline: _ooi_, _oow_; WISE: -int-, -unc-; unWISE: -img-, -invvar-; KiDS: _sci,
_wei). Pan-STARRS' skycells have variances in .wt and named bits in .mask.
"""

import re
from collections.abc import Iterable, Iterator
from contextlib import suppress

from photozhpc.errors import StorageError
from photozhpc.files.objects import AnyPath, is_remote
from photozhpc.survey import Survey

ASIDE = "aside"  # belongs to a mosaic, but is not used: models, exposure maps, other masks

# The words for the image itself.
_SCIENCE = ("drz", "drc", "sci", "science", "i2d", "img", "image", "int", "coadd", "mosaic", "maic")
_WORDS = {
    "weight": "wht weight weights wgt wt wei",
    "err": "rms err error sig sigma unc uncert uncertainty noise munc",
    "inverse_variance": "ivm ivar invvar",
    "variance": "var variance",
    "mask": "mask msk flag flags flg bpm dq dqm dqmask maskbits badpix",
    ASIDE: "blobmodel mcov mcvg num nobs area expwt model mod resid residual chi chi2 psf "
    "psfsize snr exp exptime expmap nexp cov coverage ctx con context conf depth galdepth seg segm "
    "segmap segmentation bkg bkgd background std raw preview",
}
_ROLES = {word: role for role, words in _WORDS.items() for word in words.split()}
_PAN_STARRS = {"wt": "variance"}
# NOIRLab's Community Pipeline: ooi is an image, oow its weight, ood its data quality; osi a stack.
_PIPELINE = re.compile(r"o([ops])([dwe])")
_PIPELINE_ROLES = {"d": "mask", "w": "weight", "e": ASIDE}
_FITS = re.compile(r"\.fits?(\.gz|\.fz)?", re.IGNORECASE)
# Where a server does not list folders, it is asked for these names.
_ASKED_FOR = ("wht", "weight", "rms", "err", "ivm", "ivar")


def sibling_paths(path: AnyPath, survey: Survey | None = None) -> dict[str, AnyPath]:
    """Return the files beside a mosaic with its noise or bad pixels, by role.

    Of two files with one role, the one with the mosaic's own extension is taken.

    Args:
        survey: a word that is one of its bands does not name a role.
    """
    end = _end(path.name)
    words = _words(path.name)
    if end is None:
        return {}
    names_of_role: dict[str, list[str]] = {}
    for name in _names_beside(path):
        if _end(name) is not None and name != path.name:
            for role, mosaic_words in _owners(_words(name), survey):
                if mosaic_words == words:
                    names_of_role.setdefault(role, []).append(name)
    return {
        role: path.with_name(
            min(names_of_role[role], key=lambda name: (_end(name) != end, "rms" not in name, name))
        )
        for role in _WORDS
        if role in names_of_role and role != ASIDE
    }


def without_siblings(paths: Iterable[AnyPath], survey: Survey | None = None) -> list[AnyPath]:
    """Return the paths without those that belong to another: weights, masks, models."""
    paths = list(paths)
    mosaics = {(str(path.parent), _words(path.name)) for path in paths if _end(path.name)}

    def is_owned(path: AnyPath) -> bool:
        owners = _owners(_words(path.name), survey) if _end(path.name) else ()
        return any((str(path.parent), words) in mosaics for _, words in owners)

    return [path for path in paths if not is_owned(path)]


def _owners(words: tuple[str, ...], survey: Survey | None) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield (role, words of the mosaic's name) of the mosaics that a file may belong to."""
    roles = _ROLES | _PAN_STARRS if {"skycell", "unconv"} & set(words) else _ROLES
    for index, word in enumerate(words):
        before, after = words[:index], words[index + 1 :]
        if pipeline := _PIPELINE.fullmatch(word):
            yield _PIPELINE_ROLES[pipeline[2]], (*before, f"o{pipeline[1]}i", *after)
        elif word in roles and (survey is None or survey.find_band(word) is None):
            if before or after:
                yield roles[word], (*before, *after)
            for science in _SCIENCE:
                yield roles[word], (*before, science, *after)


def _words(name: str) -> tuple[str, ...]:
    stem = name[: len(name) - len(_end(name) or "")]
    return tuple(word for word in re.split(r"[._-]+", stem.lower()) if word)


def _end(name: str) -> str | None:
    """Return the .fits, .fits.gz ... of a name, in lower case, or None."""
    match = re.search(rf"{_FITS.pattern}\Z", name, re.IGNORECASE)
    return None if match is None else match[0].lower()


def _names_beside(path: AnyPath) -> list[str]:
    with suppress(StorageError, OSError):
        return sorted(other.name for other in path.parent.iterdir())
    if not is_remote(path):
        return []
    end = _FITS.search(path.name)
    stem = path.name[: end.start()] if end else path.name
    parts = re.fullmatch(r"(.+[._-])([A-Za-z0-9]+)", stem)
    if end is None or parts is None or parts[2].lower() not in _SCIENCE:
        return []
    names = [f"{parts[1]}{word}{end[0]}" for word in _ASKED_FOR]
    return [name for name in names if path.with_name(name).is_file()]
