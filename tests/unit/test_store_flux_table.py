from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from astropy.table import Table

from photozhpc.config import from_mapping
from photozhpc.errors import ConfigError, SourceListError, StoreError
from photozhpc.evaluation.truth import read_truth
from photozhpc.sources.identifiers import id_of_text
from photozhpc.store import CutoutStore, FluxTable, open_store
from photozhpc.store.unique import check_unique
from photozhpc.survey import SourceColumns, Survey

SURVEY = from_mapping(
    Survey,
    {
        "name": "table",
        "bands": [{"name": n, "psf_fwhm_arcsec": 0.1, "extinction_r": 1.0} for n in "gr"],
        "aperture_radii_arcsec": [0.5],
        "aperture_columns": [{"value": "{band}_ap", "error": "{band}_ap_err", "unit": "nJy"}],
        "total_columns": {"value": "{band}", "error": "{band}_err", "unit": "nJy"},
    },
    "table",
)


def content(n: int = 10) -> Table:
    rng = np.random.default_rng(0)
    table = Table({"source_id": 100 + np.arange(n), "ra": np.full(n, 150.0), "dec": np.zeros(n)})
    table["z_spec"] = np.where(np.arange(n) % 3 == 0, -99.0, 0.5)
    for name in ("g_ap", "r_ap", "g", "r"):
        table[name] = rng.uniform(1, 9, n)
        table[f"{name}_err"] = rng.uniform(1, 2, n)
    return table


def write(table: Table, path: Path, rows: int = 4) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(pa.table({n: np.array(table[n]) for n in table.colnames}), path, rows)
    else:
        table.write(path)
    return path


@pytest.mark.parametrize("name", ["t.parquet", "t.fits", "t.ecsv", "t.csv", "t.votable.xml"])
def test_every_format_gives_the_same_sources_and_fluxes(tmp_path: Path, name: str) -> None:
    table = content()
    if name.endswith("xml"):
        table.write(tmp_path / name, format="votable")
    else:
        write(table, tmp_path / name)
    opened = open_store(tmp_path / name, SURVEY)
    assert isinstance(opened, FluxTable)
    lengths = opened.shard_lengths()
    assert list(lengths.values()) == ([4, 4, 2] if name.endswith("parquet") else [10])
    assert len(opened) == opened.index().n_sources == 10
    sources = [opened.read_sources(key) for key in lengths]
    measured = [opened.read_measurements(key) for key in lengths]
    np.testing.assert_array_equal(
        np.concatenate([s.source_id_N for s in sources]), table["source_id"]
    )
    z_N = np.concatenate([s.z_spec_N for s in sources])
    assert np.isfinite(z_N).tolist() == (np.arange(10) % 3 != 0).tolist()
    assert (np.concatenate([s.ebv_N for s in sources]) > 0).all()  # from the map
    flux_NCR = np.concatenate([m.flux_NCR for m in measured])
    assert flux_NCR.shape == (10, 2, 1)
    np.testing.assert_allclose(flux_NCR[:, 1, 0], table["r_ap"], rtol=1e-6)
    total_err_NC = np.concatenate([m.kron_flux_err_NC for m in measured])
    np.testing.assert_allclose(total_err_NC[:, 0], table["g_err"], rtol=1e-6)


def test_rows_without_identifiers_are_numbered_across_row_groups(tmp_path: Path) -> None:
    table = content()
    table.remove_column("source_id")
    opened = open_store(write(table, tmp_path / "t.parquet"), SURVEY)
    ids = [opened.read_source_ids(key).tolist() for key in opened.shards()]
    assert ids == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def test_the_fingerprint_follows_the_content_and_the_columns(tmp_path: Path) -> None:
    def of(table: Table, folder: str, survey: Survey = SURVEY) -> str:
        path = tmp_path / folder
        path.mkdir()
        return FluxTable.open(write(table, path / "t.parquet"), survey).fingerprint()

    changed = content()
    changed["g"][3] += 1
    other = from_mapping(Survey, {**_mapping(), "z_spec_max": 5.0}, "t")
    prints = [of(content(), "a"), of(content(), "b"), of(changed, "c"), of(content(), "d", other)]
    assert prints[0] == prints[1]
    assert len(set(prints)) == 3


def changed_survey(**source_columns: str | None) -> Survey:
    return from_mapping(Survey, {**_mapping(), "source_columns": source_columns}, "t")


@pytest.mark.parametrize("name", ["t.parquet", "t.fits", "t.csv"])
def test_text_may_identify_the_rows(tmp_path: Path, name: str) -> None:
    table = content()
    table["source_id"] = [f" J{i}" for i in range(9)] + ["12"]
    opened = open_store(write(table, tmp_path / name), SURVEY)
    ids = np.concatenate([opened.read_source_ids(key) for key in opened.shards()])
    assert ids.tolist() == [id_of_text(f"J{i}") for i in range(9)] + [12]
    assert len(set(ids)) == 10
    assert "10 identifiers in 'source_id' are text; source_id is a number" in opened.notes()[0]
    columns = SourceColumns(source_id="source_id", z_spec="z_spec")
    truth = read_truth([write(table, tmp_path / f"truth_{name}")], columns)
    labelled_N = np.array(table["z_spec"]) > 0
    assert truth.source_id_N.tolist() == sorted(ids[labelled_N].tolist())


def test_empty_text_does_not_identify_a_row(tmp_path: Path) -> None:
    table = content()
    table["source_id"] = ["a", " "] + [f"J{i}" for i in range(8)]
    with pytest.raises(SourceListError, match="column 'source_id' is empty in 1 rows"):
        open_store(write(table, tmp_path / "t.fits"), SURVEY)


def test_a_catalogue_may_lack_positions(tmp_path: Path) -> None:
    table = content()
    table.remove_columns(["ra", "dec"])
    path = write(table, tmp_path / "t.parquet")
    with pytest.raises(SourceListError, match=r"null: the catalogue has no positions"):
        open_store(path, SURVEY)
    opened = open_store(path, changed_survey(ra=None, dec=None))
    sources = opened.read_sources(opened.shards()[0])
    assert np.isnan(sources.ra_N).all()
    assert (sources.ebv_N == 0).all()
    mosaics = {**_mapping(), "aperture_columns": [], "total_columns": None, "pixel_scale_arcsec": 1}
    with pytest.raises(ConfigError, match="ra and dec are needed"):
        from_mapping(Survey, {**mosaics, "source_columns": {"ra": None}}, "t")


def test_a_band_of_mosaics_needs_its_psf_one_of_a_catalogue_does_not() -> None:
    bands = [{"name": "g", "extinction_r": 1.0}]
    assert from_mapping(Survey, {**_mapping(), "bands": bands}, "t").bands[0].psf_fwhm_arcsec == 0
    with pytest.raises(ConfigError, match="psf_fwhm_arcsec of band g is missing"):
        from_mapping(Survey, {"name": "m", "bands": bands, "pixel_scale_arcsec": 1.0}, "t")
    with pytest.raises(ConfigError, match="extinction_r is missing"):
        from_mapping(Survey, {**_mapping(), "bands": [{"name": "g"}]}, "t")


def test_identifiers_that_appear_twice_are_named(tmp_path: Path) -> None:
    table = content()
    table["source_id"][3] = table["source_id"][7]
    path = write(table, tmp_path / "t.fits")
    with pytest.raises(StoreError, match=r"identifier 107 appears twice.*source_id: null"):
        check_unique(open_store(path, SURVEY))
    check_unique(open_store(path, changed_survey(source_id=None)))


def _mapping() -> dict:
    from photozhpc.config import to_mapping

    return to_mapping(SURVEY)


def test_faulty_catalogues_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceListError, match="the photometric catalogue has no rows"):
        open_store(write(content()[:0], tmp_path / "none.parquet"), SURVEY)
    with pytest.raises(SourceListError, match=r"nix.fits: no such photometric catalogue"):
        open_store(tmp_path / "nix.fits", SURVEY)
    table = content()
    table.remove_column("ra")
    with pytest.raises(SourceListError, match="photometric catalogue has no column 'ra'"):
        open_store(write(table, tmp_path / "nowhere.fits"), SURVEY)
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 and nothing else")
    with pytest.raises(SourceListError, match="cannot be read"):
        open_store(tmp_path / "broken.parquet", SURVEY)
    survey = from_mapping(
        Survey,
        {**_mapping(), "aperture_columns": [], "total_columns": None, "pixel_scale_arcsec": 1},
        "t",
    )
    for unsuitable in (survey, None):
        with pytest.raises(ConfigError, match="which columns hold the fluxes"):
            open_store(write(content(), tmp_path / f"{unsuitable is None}.fits"), unsuitable)


def test_a_folder_is_a_store(tmp_path: Path) -> None:
    CutoutStore.create(
        tmp_path / "s", from_mapping(Survey, {**_mapping(), "pixel_scale_arcsec": 0.1}, "t")
    )
    assert isinstance(open_store(tmp_path / "s", SURVEY), CutoutStore)
