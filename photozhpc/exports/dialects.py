"""The catalogue in other surveys' dialects: names and units of columns for export.

roman    RAD schema of the Roman source catalogue, as in the catalogue itself
rubin    Object table of Data Preview 1, https://sdm-schemas.lsst.io/dp1.html; radii in arcsec
         as in its gaap1p0Flux, photo-z columns as in its PZ tables
euclid   MER and PHZ catalogues of Quick Release Q1, https://doi.org/10.57780/esa-2853f3b;
         intervals in two columns, as in IRSA's tables; fluxes in microjansky
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from photozhpc.catalog.photoz_catalog import QUANTILE_LEVELS
from photozhpc.catalog.votable import table_description, with_votable
from photozhpc.errors import ConfigError, did_you_mean

_FLUX = re.compile(r"(?:aper(?P<radius>\d+)|(?P<kron>kron))_(?P<band>.+)_flux(?P<err>_err)?")


@dataclass(frozen=True)
class Dialect:
    """How a survey names its columns.

    Attributes:
        names: {our name: its name} of the columns that every catalogue has.
        interval: returns the name of one end of an interval, from "low" or "high" and the
            percentage.
        flux: returns the name of a flux, from the band, the radius in arcsec (None: Kron), and
            whether it is an error.
        flux_unit: as astropy writes it.
        njy: one nJy in that unit.
        ensemble: name of a nested column of p(z) that always is a density, with the fields xvals
            and yvals; "": none, p(z) stays in its form.
    """

    names: dict[str, str]
    interval: Callable[[str, str], str]
    flux: Callable[[str, float | None, bool], str]
    flux_unit: str = "nJy"
    njy: float = 1.0
    ensemble: str = ""


def _rubin_flux(band: str, radius_arcsec: float | None, is_err: bool) -> str:
    size = "kron" if radius_arcsec is None else f"ap{radius_arcsec:.1f}".replace(".", "p")
    return f"{band}_{size}Flux{'Err' if is_err else ''}"


def _euclid_flux(band: str, radius_arcsec: float | None, is_err: bool) -> str:
    size = "kron" if radius_arcsec is None else f"{radius_arcsec:.1f}arcsec".replace(".", "p")
    return f"flux{'err' if is_err else ''}_{band}_{size}_aper"


DIALECTS: dict[str, Dialect | None] = {
    "roman": None,
    "rubin": Dialect(
        names={
            "source_id": "objectId",
            "ra": "coord_ra",
            "dec": "coord_dec",
            "photoz": "pita_z_best",
            "photoz_mean": "pita_z_mean",
            "photoz_median": "pita_z_median",
            "photoz_mode": "pita_z_mode",
            "photoz_ood": "pita_z_ood",
            "photoz_flags": "pita_z_flags",
            "star_probability": "pita_z_star_probability",
        },
        interval=lambda side, percent: f"pita_z_err{percent}_{side}",
        flux=_rubin_flux,
        ensemble="pita_ens_interp",
    ),
    "euclid": Dialect(
        names={
            "source_id": "object_id",
            "ra": "right_ascension",
            "dec": "declination",
            "photoz": "phz_best",
            "photoz_mean": "phz_mean",
            "photoz_median": "phz_median",
            "photoz_mode": "phz_mode_1",
            "photoz_ood": "phz_ood",
            "photoz_flags": "phz_flags",
            "star_probability": "phz_star_probability",
        },
        interval=lambda side, percent: f"phz_{percent}_int{1 if side == 'low' else 2}",
        flux=_euclid_flux,
        flux_unit="uJy",
        njy=1e-3,
    ),
}


def find_dialect(name: str) -> Dialect | None:
    """Return a dialect; None if the columns stay as they are.

    Raises:
        ConfigError: the name is unknown.
    """
    if name not in DIALECTS:
        raise ConfigError(f"unknown columns '{name}'{did_you_mean(name, DIALECTS)}")
    return DIALECTS[name]


def translated_schema(schema: pa.Schema, dialect: Dialect | None) -> pa.Schema:
    """Return the schema, with its VOTable, in a dialect."""
    if dialect is None:
        return schema
    fields = []
    for field in schema:
        metadata = dict(field.metadata)
        if _is_flux(field):
            metadata[b"unit"] = dialect.flux_unit.encode()
        description = metadata[b"description"].decode() + f" (photozhpc: {field.name})"
        metadata[b"description"] = description.encode()
        fields.append(field.with_name(translated(field.name, dialect)).with_metadata(metadata))
    return with_votable(pa.schema(fields, schema.metadata), table_description(schema))


def translate(table: pa.Table, dialect: Dialect | None) -> pa.Table:
    """Return rows of a catalogue in a dialect, without the schema's metadata."""
    if dialect is None:
        return table
    columns = [
        _scaled(column, dialect.njy) if _is_flux(field) else column
        for field, column in zip(table.schema, table.columns, strict=True)
    ]
    return pa.Table.from_arrays(columns, [translated(name, dialect) for name in table.column_names])


def translated(name: str, dialect: Dialect) -> str:
    """Return a column's name in a dialect; a column that the dialect lacks keeps its name."""
    if QUANTILE_LEVELS.get(name, 0.5) != 0.5:  # an end of an interval
        return dialect.interval(name[len("photoz_") : -2], name[-2:])
    if match := _FLUX.fullmatch(name):
        radius_arcsec = None if match["kron"] else int(match["radius"]) / 10
        return dialect.flux(match["band"], radius_arcsec, match["err"] is not None)
    return dialect.names.get(name, name)


def _is_flux(field: pa.Field) -> bool:
    return (field.metadata or {}).get(b"unit") == b"nJy"


def _scaled(column: pa.ChunkedArray, factor: float) -> pa.ChunkedArray:
    if factor == 1:
        return column
    null_N = column.is_null().to_numpy()
    values_N = column.to_numpy() * np.float32(factor)
    return pa.chunked_array([pa.array(values_N, pa.float32(), mask=null_N)])
