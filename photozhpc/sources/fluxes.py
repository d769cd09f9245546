"""Fluxes in the columns of a photometric catalogue: in nJy, NaN where not measured."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from photozhpc.errors import SourceListError, did_you_mean, one_line
from photozhpc.sources.identifiers import check_one_per_row
from photozhpc.sources.redshifts import Remarks
from photozhpc.sources.sky_units import is_magnitudes, is_unstated, to_nanojansky
from photozhpc.sources.table_file import TableFile, as_floats
from photozhpc.survey import Band, FluxColumns, Survey, flux_of_ab

_MAX_MAGNITUDE = 50.0  # beyond +-50 lie only marks for 'unknown': 99, -99, 999
_MAX_FLUX_NJY = 1e15  # AB -6
_POGSON = 2.5 / np.log(10)


class Fluxes(NamedTuple):
    """Fluxes of N sources in C bands and R apertures, nJy, float32.

    Attributes:
        flux_NCR, flux_err_NCR: NaN where there is no flux, or no positive error; without error
            columns, all errors are NaN.
        total_flux_NC, total_flux_err_NC: the same of total fluxes; all NaN if there are none.
    """

    flux_NCR: NDArray[np.float32]
    flux_err_NCR: NDArray[np.float32]
    total_flux_NC: NDArray[np.float32]
    total_flux_err_NC: NDArray[np.float32]


def flux_column_names(survey: Survey, table_names: list[str], path: object) -> dict[str, str]:
    """Return the names of the columns that hold fluxes, by what the survey calls them.

    {band} is the band's name, or the first of its `band_aliases` for which there is a column; case
    does not matter where no column has exactly this name.

    Raises:
        SourceListError: there is no such column.
    """
    found: dict[str, str] = {}
    for columns in _all_columns(survey):
        for band in survey.bands:
            for pattern in _patterns(columns):
                found[pattern.replace("{band}", band.name)] = _find(
                    survey, pattern, band, table_names, path
                )
    return found


def possible_names(survey: Survey) -> set[str]:
    """Return all names that columns of fluxes may have, in lower case."""
    bands = [*survey.band_names, *survey.band_aliases]
    patterns = [p for columns in _all_columns(survey) for p in _patterns(columns)]
    return {pattern.replace("{band}", band).lower() for pattern in patterns for band in bands}


def _find(survey: Survey, pattern: str, band: Band, names: list[str], path: object) -> str:
    aliases = [
        a for a, target in survey.band_aliases.items() if target.lower() == band.name.lower()
    ]
    wanted = [pattern.replace("{band}", name) for name in (band.name, *aliases)]
    by_lower = {name.lower(): name for name in reversed(names)}
    for name in wanted:
        if name in names:
            return name
    for name in wanted:
        if name.lower() in by_lower:
            return by_lower[name.lower()]
    raise SourceListError(
        f"{path}: the catalogue has no column '{wanted[0]}' for band {band.name}"
        f"{did_you_mean(wanted[0], names)}; correct aperture_columns or total_columns in the "
        f"survey's YAML file (without 'error', if there are no errors)"
    )


def read_fluxes(table: TableFile, survey: Survey, remarks: Remarks) -> Fluxes:
    """Return the fluxes of a table that was read with all columns of `flux_column_names`.

    Args:
        remarks: receives the numbers of values that were not used.

    Raises:
        SourceListError: a column is missing, holds no numbers, or states an unsuitable unit; or
            the unit of a flux is not known.
    """
    names = flux_column_names(survey, table.names, table.path)
    n = len(next(iter(table.columns.values())))
    shape = (n, len(survey.bands), len(survey.aperture_columns))
    flux_NCR, err_NCR = (np.empty(shape, np.float32) for _ in range(2))
    total_NC, total_err_NC = (np.full(shape[:2], np.nan, np.float32) for _ in range(2))
    for c, band in enumerate(survey.bands):
        for r, columns in enumerate(survey.aperture_columns):
            flux_NCR[:, c, r], err_NCR[:, c, r] = _one(table, columns, band, names, remarks)
        if survey.total_columns is not None:
            pair = _one(table, survey.total_columns, band, names, remarks)
            total_NC[:, c], total_err_NC[:, c] = pair
    return Fluxes(flux_NCR, err_NCR, total_NC, total_err_NC)


def _all_columns(survey: Survey) -> list[FluxColumns]:
    total = survey.total_columns
    return [*survey.aperture_columns, *([] if total is None else [total])]


def _patterns(columns: FluxColumns) -> list[str]:
    return [columns.value, *([columns.error] if columns.error else [])]


def _one(
    table: TableFile, columns: FluxColumns, band: Band, names: dict[str, str], remarks: Remarks
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return flux_N and its error, nJy, of one pair of columns, or of a column without errors."""
    name = names[columns.value.replace("{band}", band.name)]
    error_name = names[columns.error.replace("{band}", band.name)] if columns.error else ""
    value_N = _numbers(table, name)
    error_N = _numbers(table, error_name) if error_name else np.full(len(value_N), np.nan)
    if columns.missing:
        value_N[np.isin(value_N, columns.missing)] = np.nan
    if columns.kind == "magnitude":
        flux_N, err_N = _from_magnitudes(table, columns, band, name, value_N, error_N)
    else:
        factor = _nanojansky(table, columns, band, name)
        flux_N = value_N * factor
        if error_name:
            err_N = error_N * _nanojansky(table, columns, band, error_name, factor)
        else:
            err_N = error_N
    measured_N = np.abs(flux_N) < _MAX_FLUX_NJY
    if error_name:
        with_error_N = (err_N > 0) & (err_N < _MAX_FLUX_NJY)
        remarks.add(
            int(np.count_nonzero(measured_N & ~with_error_N)),
            f"values of '{name}' have no positive error in '{error_name}' and count as not "
            "measured",
        )
        measured_N &= with_error_N
    return np.where(measured_N, flux_N, np.nan), np.where(measured_N, err_N, np.nan)


def _from_magnitudes(
    table: TableFile,
    columns: FluxColumns,
    band: Band,
    name: str,
    mag_N: NDArray[np.float64],
    mag_err_N: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    unit = table.units.get(name, "")
    if not is_magnitudes(unit):
        raise SourceListError(
            f"{table.path}: column '{name}' is in '{unit[:40]}', but the survey says that it holds "
            f"magnitudes; write kind: flux in the survey's YAML file"
        )
    zero = band.zero_point_ab or 0.0
    limit_N = np.full(len(mag_N), False)
    if columns.upper_limit is not None:
        limit_N = (mag_N == columns.upper_limit) & (np.abs(mag_err_N) < _MAX_MAGNITUDE)
    mag_N = np.where(np.abs(mag_N) < _MAX_MAGNITUDE, mag_N, np.nan)
    mag_err_N = np.where(np.abs(mag_err_N) < _MAX_MAGNITUDE, mag_err_N, np.nan)
    flux_N = np.where(limit_N, 0.0, flux_of_ab(mag_N + zero))
    err_N = np.where(limit_N, flux_of_ab(mag_err_N + zero), flux_N * mag_err_N / _POGSON)
    return flux_N, err_N


def _nanojansky(
    table: TableFile, columns: FluxColumns, band: Band, name: str, usual: float | None = None
) -> float:
    """Return one unit of a column of fluxes in nJy.

    Args:
        usual: of the column's companion, for a column that states no unit.
    """
    stated = table.units.get(name, "")
    if is_unstated(stated) and usual is not None:
        return usual
    unit = columns.unit if is_unstated(stated) else stated
    if unit:
        try:
            return to_nanojansky(unit)
        except ValueError as error:
            if band.zero_point_ab is None or is_magnitudes(unit):
                remedy = "write kind: magnitude, or " if is_magnitudes(unit) else ""
                raise SourceListError(
                    f"{table.path}: column '{name}': {error}; {remedy}give zero_point_ab of band "
                    f"{band.name} in the survey's YAML file"
                ) from None
    if band.zero_point_ab is None:
        raise SourceListError(
            f"{table.path}: column '{name}' states no unit; give the unit (nJy, uJy) in the "
            f"survey's YAML file, or zero_point_ab of band {band.name}"
        )
    return float(flux_of_ab(band.zero_point_ab))


def _numbers(table: TableFile, name: str) -> NDArray[np.float64]:
    check_one_per_row(table, name)
    try:
        return np.array(as_floats(table.columns[name]))
    except (TypeError, ValueError) as error:
        raise SourceListError(
            f"{table.path}: column '{name}' does not hold numbers ({one_line(error)})"
        ) from None
