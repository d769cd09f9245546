from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from astropy.table import Table

from photozhpc.config import from_mapping
from photozhpc.errors import ConfigError, SourceListError
from photozhpc.store import CutoutStore, FluxTable, open_store
from photozhpc.survey import Survey

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


def _mapping() -> dict:
    from photozhpc.config import to_mapping

    return to_mapping(SURVEY)


def test_faulty_catalogues_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceListError, match="the photometric catalogue has no rows"):
        open_store(write(content()[:0], tmp_path / "none.parquet"), SURVEY)
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
