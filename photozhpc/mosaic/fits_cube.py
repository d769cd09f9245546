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
    """Return {band: layer} of a cube, and a note if it is a guess; empty: not a cube.

    By the header's cards (BANDS = 'grz', BAND0 = 'g' ...). Without them, a cube with as many
    layers as the survey has bands is in the survey's order.

    Raises:
        MosaicError: the cards contradict one another or the cube; or there are none, and the
            header contradicts the survey's order.
        ConfigError: none of the bands is one of the survey's.
    """
    n_layers = shape[-3] if len(shape) > 2 else 1
    if n_layers == 1 or math.prod(shape[:-3]) != 1:
        return {}, ""
    names = _layer_names(path, n_layers, headers)
    if names:
        layer_bands = [survey.find_band(name) for name in names]
        layers = {band.name: c for c, band in enumerate(layer_bands) if band is not None}
        if not layers:
            raise ConfigError(
                f"{path}: its layers are {', '.join(names)}, and the survey '{survey.name}' has "
                f"no such band{did_you_mean(names[0], survey.band_names)}"
            )
        if len(layers) < sum(band is not None for band in layer_bands):
            raise MosaicError(
                f"{path}: two of its layers are of one band ({', '.join(names)}); correct its cards"
            )
        return layers, ""
    if len(shape) != 3 or n_layers != len(survey.bands):
        return {}, ""
    advice = f"name the bands of its layers in cards BAND1 to BAND{n_layers}"
    axis = str(next((h["CTYPE3"] for h in headers if h.get("CTYPE3")), ""))
    if re.match(r"STOKES|V(ELO|RAD|OPT|ELO-)|TIME|UTC|TAI", axis, re.IGNORECASE):
        raise MosaicError(f"{path}: CTYPE3 is '{axis}', so its layers are not bands; {advice}")
    bands = (survey.find_band(text) for _, text in header_bands(*headers))
    stated = dict.fromkeys(band.name for band in bands if band is not None)
    if set(stated) - {survey.bands[0].name}:  # a stack of images has the header of the first
        raise MosaicError(
            f"{path}: has {n_layers} layers, but its header says {', '.join(stated)}; {advice}"
        )
    order = ", ".join(survey.band_names)
    note = f"no card says which layer of {path.name} is which band; assumed order: {order}"
    return {name: c for c, name in enumerate(survey.band_names)}, note


def _layer_names(path: AnyPath, n_layers: int, headers: Sequence[fits.Header]) -> list[str]:
    """Return the names of a cube's layers from the header's cards; empty: there are none.

    Legacy Surveys' cutouts have BANDS and BAND0, BAND1 ... (legacysurvey.org, viewer's cutouts);
    others count from 1, or write FILTERn.
    """
    names_by_card: dict[str, list[str]] = {}
    for header in headers:
        all_bands = header.get("BANDS") or header.get("FILTERS")
        if isinstance(all_bands, str) and all_bands.strip():
            words = re.findall(r"[^\s,;:|/'\"\[\]()]+", all_bands)
            are_letters = len(words) == 1 and len(words[0]) == n_layers
            names_by_card["BANDS"] = list(words[0]) if are_letters else words
        for key in ("BAND", "FILTER", "PLANE", "LAYER", "CHAN", "FILT"):
            first = 0 if f"{key}0" in header else 1
            cards = [header.get(f"{key}{c}") for c in range(first, first + n_layers)]
            if all(isinstance(card, str) and card.strip() for card in cards):
                names_by_card[f"{key}{first} ..."] = [card.strip() for card in cards]
        if names_by_card:
            break
    lists = list(names_by_card.values())
    if any(len(names) != n_layers or names != lists[0] for names in lists):
        shown = "; ".join(f"{key}: {' '.join(names)}" for key, names in names_by_card.items())
        raise MosaicError(
            f"{path}: its cards do not give one band to each of {n_layers} layers ({shown}); "
            "correct them"
        )
    return lists[0] if lists else []
