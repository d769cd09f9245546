from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.table import Table

from photozhpc.config import from_mapping
from photozhpc.errors import ConfigError, SourceListError
from photozhpc.sources.fluxes import Fluxes, possible_names, read_fluxes
from photozhpc.sources.redshifts import Remarks
from photozhpc.sources.table_file import read_columns
from photozhpc.survey import Survey


def make_survey(zero_point_ab: float | None = None, **keys: Any) -> Survey:
    bands = [
        {"name": n, "psf_fwhm_arcsec": 0.1, "extinction_r": 1.0, "zero_point_ab": zero_point_ab}
        for n in ("g", "r")
    ]
    return from_mapping(
        Survey, {"name": "t", "bands": bands, "aperture_radii_arcsec": [], **keys}, "t"
    )


def columns(**keys: Any) -> dict[str, Any]:
    return {"total_columns": {"value": "{band}_v", "error": "{band}_e", **keys}}


def read(path: Path, table: Table, survey: Survey, remarks: Remarks | None = None) -> Fluxes:
    table.write(path / "t.ecsv", overwrite=True)
    names = possible_names(survey)
    read = read_columns(path / "t.ecsv", "photometric catalogue", lambda n: n.lower() in names)
    return read_fluxes(read, survey, remarks or Remarks())


def table(value: list[float], error: list[float], unit: str | None = None) -> Table:
    content = Table({"g_v": value, "g_e": error, "r_v": value, "r_e": error})
    if unit is not None:
        for name in content.colnames:
            content[name].unit = unit
    return content


def test_magnitudes_become_nanojansky(tmp_path: Path) -> None:
    content = table([31.4, 26.4, 99, -99, 28.9, np.nan, 25.0], [0.1, 0.2, 28.9, 0.1, 0.0, 0.1, -1])
    survey = make_survey(**columns(kind="magnitude"))
    remarks = Remarks()
    fluxes = read(tmp_path, content, survey, remarks)
    assert fluxes.flux_NCR.shape == (7, 2, 0)
    flux_N, err_N = fluxes.total_flux_NC[:, 1], fluxes.total_flux_err_NC[:, 1]
    np.testing.assert_allclose(flux_N[:2], [1, 100], rtol=1e-6)
    np.testing.assert_allclose(err_N[:2], [0.1 / 1.0857362, 20 / 1.0857362], rtol=1e-6)
    assert np.isnan(flux_N[2:]).all()
    assert np.isnan(err_N[2:]).all()
    assert remarks.lines() == [
        "2 values of 'g_v' have no positive error in 'g_e' and count as not measured",
        "2 values of 'r_v' have no positive error in 'r_e' and count as not measured",
    ]


def test_an_upper_limit_is_a_flux_of_0_with_its_error(tmp_path: Path) -> None:
    survey = make_survey(**columns(kind="magnitude", upper_limit=99.0))
    fluxes = read(tmp_path, table([99.0, 99.0, 30.0], [28.9, 99.0, 0.1]), survey)
    np.testing.assert_allclose(fluxes.total_flux_NC[:2, 0], [0, np.nan])
    np.testing.assert_allclose(fluxes.total_flux_err_NC[:2, 0], [10, np.nan], rtol=1e-6)


@pytest.mark.parametrize(
    ("unit", "keys", "zero_point", "factor"),
    [
        ("uJy", {}, None, 1e3),
        (None, {"unit": "nanomaggy"}, None, 3630.78),
        (None, {}, 25.0, 10**2.56),
        ("electron / s", {}, 25.0, 10**2.56),
        ("nJy", {}, 25.0, 1),
    ],
)
def test_fluxes_are_converted_by_unit_or_zero_point(
    tmp_path: Path, unit: str, keys: dict[str, str], zero_point: float, factor: float
) -> None:
    content = table([5.0, -2.0, -99.0, 7.0], [1.0, 1.0, -99.0, 1.0], unit)
    survey = make_survey(zero_point, **columns(**keys, missing=[7.0]))
    fluxes = read(tmp_path, content, survey)
    expected = np.array([5, -2, np.nan, np.nan]) * factor
    np.testing.assert_allclose(fluxes.total_flux_NC[:, 0], expected, rtol=1e-5)
    np.testing.assert_allclose(fluxes.total_flux_err_NC[0, 0], factor, rtol=1e-5)


@pytest.mark.parametrize(
    ("unit", "keys", "message"),
    [
        (None, {}, "column 'g_v' states no unit; give the unit .* or zero_point_ab of band g"),
        ("mag", {}, "'g_v': 'mag' cannot be converted to nJy; write kind: magnitude"),
        ("erg/s", {}, "'g_v': 'erg / s' cannot be converted to nJy; give zero_point_ab of band g"),
        ("uJy", {"kind": "magnitude"}, "'g_v' is in 'uJy', but .* magnitudes; write kind: flux"),
        (None, {"value": "{band}_w", "unit": "nJy"}, "has no column 'g_w' for band g.*'g_v'"),
    ],
)
def test_unclear_columns_are_refused(
    tmp_path: Path, unit: str, keys: dict[str, str], message: str
) -> None:
    with pytest.raises(SourceListError, match=message):
        read(tmp_path, table([1.0], [1.0], unit), make_survey(**columns(**keys)))


@pytest.mark.parametrize("kind", ["flux", "magnitude"])
def test_without_error_columns_every_flux_is_measured(tmp_path: Path, kind: str) -> None:
    content = table([24.0, -99.0, np.nan, 25.0], [0.0] * 4)["g_v", "r_v"]
    keys = {"unit": "nJy"} if kind == "flux" else {}
    survey = make_survey(
        total_columns={"value": "{band}_v", "kind": kind, "missing": [-99], **keys}
    )
    fluxes = read(tmp_path, content, survey)
    expected = [24, np.nan, np.nan, 25] if kind == "flux" else [912.01, np.nan, np.nan, 363.08]
    np.testing.assert_allclose(fluxes.total_flux_NC[:, 1], expected, rtol=1e-4)
    assert np.isnan(fluxes.total_flux_err_NC).all()


def test_text_is_refused(tmp_path: Path) -> None:
    content = table([1.0], [1.0])
    content["g_v"] = ["bright"]
    with pytest.raises(SourceListError, match="column 'g_v' does not hold numbers"):
        read(tmp_path, content, make_survey(**columns(unit="nJy")))


def test_bands_may_go_by_an_alias_and_in_any_case(tmp_path: Path) -> None:
    content = table([1.0], [1.0])
    content.rename_columns(["g_v", "g_e", "r_v"], ["green_v", "green_e", "R_V"])
    survey = make_survey(**columns(unit="nJy"), band_aliases={"green": "g"})
    assert read(tmp_path, content, survey).total_flux_NC.tolist() == [[1, 1]]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (columns(value="flux"), "value must name columns with {band}"),
        (columns(upper_limit=99.0), "upper_limit is only for magnitudes"),
        (columns(kind="magnitude", upper_limit=99.0, error=""), "upper_limit needs error columns"),
        (columns(error="err"), "error must name columns with {band}"),
        (columns(kind="magnitude", unit="nJy"), "unit is only for fluxes"),
        ({"pixel_scale_arcsec": 0.1}, "aperture_radii_arcsec needs positive radii"),
        (
            {"aperture_columns": [{"value": "{band}", "error": "{band}_e"}]},
            "aperture_columns needs one entry for each of aperture_radii_arcsec",
        ),
    ],
)
def test_faulty_surveys_are_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_survey(**keys)
