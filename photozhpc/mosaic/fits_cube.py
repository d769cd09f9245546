"""Which layer of a cube is which band of the survey."""

import math
import re
from collections.abc import Sequence

from astropy.io import fits

from photozhpc.errors import ConfigError, MosaicError, did_you_mean
from photozhpc.files.objects import AnyPath
from photozhpc.mosaic.fits_roles import header_bands
from photozhpc.survey import Survey


def cube_layers(
    path: AnyPath, shape: tuple[int, ...], survey: Survey, headers: Sequence[fits.Header]
) -> tuple[dict[str, int], str]:
    """Say which layer of a cube is which of the survey's bands, with a note if that is a guess.

    By the header's cards (BANDS = 'grz', BAND0 = 'g' ...); without them, a cube of as many
    layers as the survey has bands is in the survey's order. Empty: no cube.

    Raises:
        MosaicError: the cards contradict one another or the cube, or no card says what is what and
            something says that the layers are not the survey's bands in order.
        ConfigError: none of the bands is one of the survey's.
    """
    n_layers = shape[-3] if len(shape) > 2 else 1
    if n_layers == 1 or math.prod(shape[:-3]) != 1:
        return {}, ""
    names = _layer_names(path, n_layers, headers)
    if names:
        found = [survey.find_band(name) for name in names]
        layers = {band.name: c for c, band in enumerate(found) if band is not None}
        if not layers:
            raise ConfigError(
                f"{path}: its layers are {', '.join(names)}, and the survey '{survey.name}' has "
                f"no such band{did_you_mean(names[0], survey.band_names)}"
            )
        if len(layers) < sum(band is not None for band in found):
            raise MosaicError(f"{path}: two of its layers are of one band ({', '.join(names)})")
        return layers, ""
    if len(shape) != 3 or n_layers != len(survey.bands):
        return {}, ""
    advice = f"say which layer is which in cards BAND1 to BAND{n_layers}"
    axis = str(next((h["CTYPE3"] for h in headers if h.get("CTYPE3")), ""))
    if re.match(r"STOKES|V(ELO|RAD|OPT|ELO-)|TIME|UTC|TAI", axis, re.IGNORECASE):
        raise MosaicError(f"{path}: CTYPE3 is '{axis}', so its layers are no bands; {advice}")
    bands = (survey.find_band(text) for _, text in header_bands(*headers))
    stated = dict.fromkeys(band.name for band in bands if band is not None)
    if set(stated) - {survey.bands[0].name}:  # a stack of images has the header of the first
        raise MosaicError(
            f"{path}: has {n_layers} layers, and its header says {', '.join(stated)}; {advice}"
        )
    order = ", ".join(survey.band_names)
    note = f"no card says which layer of {path.name} is which band: taken in the order {order}"
    return {name: c for c, name in enumerate(survey.band_names)}, note


def _layer_names(path: AnyPath, n_layers: int, headers: Sequence[fits.Header]) -> list[str]:
    """What the header's cards call the layers of a cube; empty: nothing.

    Legacy Surveys' cutouts have BANDS and BAND0, BAND1 ... (legacysurvey.org, viewer's cutouts);
    others count from 1, or call it FILTERn.
    """
    found: dict[str, list[str]] = {}
    for header in headers:
        together = header.get("BANDS") or header.get("FILTERS")
        if isinstance(together, str) and together.strip():
            words = re.findall(r"[^\s,;:|/'\"\[\]()]+", together)
            one = len(words) == 1 and len(words[0]) == n_layers
            found["BANDS"] = list(words[0]) if one else words
        for key in ("BAND", "FILTER", "PLANE", "LAYER", "CHAN", "FILT"):
            first = 0 if f"{key}0" in header else 1
            cards = [header.get(f"{key}{c}") for c in range(first, first + n_layers)]
            if all(isinstance(card, str) and card.strip() for card in cards):
                found[f"{key}{first} ..."] = [card.strip() for card in cards]
        if found:
            break
    lists = list(found.values())
    if any(len(names) != n_layers or names != lists[0] for names in lists):
        shown = "; ".join(f"{key}: {' '.join(names)}" for key, names in found.items())
        raise MosaicError(
            f"{path}: its cards do not say which of {n_layers} layers is which band ({shown}); "
            "correct them"
        )
    return lists[0] if lists else []
