"""roman-l3 on a folder as STScI delivers it.

Names: romancal's documentation of `multiband_asn` and `skycell_asn`
(rPPPPP_{release}_{product}_{skycell}_{filter}_coadd.asdf; products full, p.. pass, d.. day,
v.. visit) and RDox, WFI Data Levels and Products. Catalogues: RAD, multiband_catalog_table
(label, flagged_spatial_id, ra, dec); romancal's `source_catalog` for the bits of the identifier.
"""

import importlib.resources
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from photozhpc.errors import ConfigError, MosaicError, SourceListError
from photozhpc.extraction.extract import extract
from photozhpc.extraction.mosaics import find_mosaics
from photozhpc.mosaic.duplicates import exposure_time_s
from photozhpc.sky.l3_file import tile_wcs, write_mosaic
from photozhpc.sky.observe import Observed
from photozhpc.sources.find import find_source_lists, read_survey_lists
from photozhpc.store import CutoutStore
from photozhpc.survey import load_survey

SURVEY = load_survey("roman-l3")
CELLS = ("270p65x48y69", "270p65x49y69")  # neighbours, 60 px of them in common
SIZE, OVERLAP, SCALE = 260, 60, 0.055
RA, DEC = 270.0, 65.0
SHIFT_DEG = (SIZE - OVERLAP) * SCALE / 3600 / np.cos(np.radians(DEC))


def _wcs(cell: int):
    return tile_wcs(RA + cell * SHIFT_DEG, DEC, SIZE, SCALE)


def _mosaic(path: Path, cell: int, band: str, level: float, exposure_s: float) -> None:
    rng = np.random.default_rng(len(path.name))
    err = np.full((SIZE, SIZE), 10.0, np.float32)
    data = (level + rng.normal(0, 10, (SIZE, SIZE))).astype(np.float32)
    observed = Observed(data, err, np.ones_like(err), err**2 / 2, err**2 / 2)
    centre = (RA + cell * SHIFT_DEG, DEC)
    write_mosaic(path, observed, band, _wcs(cell), centre, SCALE, exposure_s)


def _catalogue(path: Path, cell: int, sky_K2: np.ndarray, with_spatial_id: bool) -> None:
    x, y = _wcs(cell).invert(*sky_K2.T)
    on = (x > 0) & (x < SIZE) & (y > 0) & (y < SIZE)
    x, y, sky = x[on], y[on], sky_K2[on]
    virtual = [(v * SCALE / 0.05).astype(np.int64) for v in (x, y)]
    spatial = (1234 << 46) + (69 << 39) + ((48 + cell) << 32) + (virtual[1] << 16) + virtual[0]
    pd.DataFrame(
        {
            "label": np.arange(1, len(sky) + 1, dtype=np.int32),
            "flagged_spatial_id": spatial if with_spatial_id else np.zeros_like(spatial),
            "ra": sky[:, 0],
            "dec": sky[:, 1],
            "kron_f158_flux": np.float32(1.0),
        }
    ).to_parquet(path)


@pytest.fixture(scope="module")
def sky_K2() -> np.ndarray:
    rng = np.random.default_rng(1)
    x, y = rng.uniform(-SIZE + OVERLAP + 5, SIZE - 5, 80), rng.uniform(5, SIZE - 5, 80)
    return np.stack(_wcs(0)(x, y, with_bounding_box=False), axis=-1)


@pytest.fixture(scope="module")
def delivery(tmp_path_factory: pytest.TempPathFactory, sky_K2: np.ndarray) -> Path:
    """Two skycells: visits, a pass and the full coadd of one, two visits of the other."""
    folder = tmp_path_factory.mktemp("l3")
    for band in ("F129", "F158"):
        for cell, product, level, exposure in (
            (0, "p_v01001001001001", 1e3, 100.0),
            (0, "p_v01002001001001", 2e3, 100.0),
            (0, "p_p01001", 3e3, 300.0),
            (0, "p_full", 4e3, 600.0),
            (1, "p_v01001001001001", 5e3, 200.0),
            (1, "p_v01002001001001", 6e3, 100.0),
        ):
            name = f"r00001_{product}_{CELLS[cell]}_{band.lower()}_coadd.asdf"
            _mosaic(folder / name, cell, band, level, exposure)
    dr = f"r00001_dr01_full_{CELLS[0]}_f158_coadd.asdf"
    _mosaic(folder / dr, 0, "F158", 7e3, 600.0)
    for cell, product in ((0, "p_full"), (0, "p_v01001001001001"), (1, "p_v01001001001001")):
        _catalogue(folder / f"r00001_{product}_{CELLS[cell]}_cat.parquet", cell, sky_K2, True)
    _catalogue(folder / f"r00001_p_full_{CELLS[0]}_f158_cat.parquet", 0, sky_K2, True)
    _catalogue(folder / "r0000101001001001001_0001_wfi01_f158_cat.parquet", 0, sky_K2, True)
    return folder


def test_of_each_skycell_and_band_the_final_or_deepest_mosaic_is_used(delivery: Path) -> None:
    notes: list[str] = []
    found = find_mosaics(delivery, SURVEY, notes)
    names = {cell: {b: p.name for b, p in bands.items()} for cell, bands in found.items()}
    assert names == {
        CELLS[0]: {
            "F129": f"r00001_p_full_{CELLS[0]}_f129_coadd.asdf",
            "F158": f"r00001_dr01_full_{CELLS[0]}_f158_coadd.asdf",
        },
        CELLS[1]: {
            "F129": f"r00001_p_v01001001001001_{CELLS[1]}_f129_coadd.asdf",
            "F158": f"r00001_p_v01001001001001_{CELLS[1]}_f158_coadd.asdf",
        },
    }
    (note,) = notes
    assert note.startswith("9 mosaics passed over for a better one")


def test_one_catalogue_a_skycell_is_used(delivery: Path) -> None:
    notes: list[str] = []
    lists = find_source_lists(delivery, SURVEY, notes)
    assert [path.name for path in lists] == [
        f"r00001_p_full_{CELLS[0]}_cat.parquet",
        f"r00001_p_v01001001001001_{CELLS[1]}_cat.parquet",
    ]
    assert notes[0].startswith("2 source lists passed over")
    assert "r0000101001001001001_0001_wfi01_f158_cat.parquet" in notes[1]


def _rows(store: CutoutStore) -> pd.DataFrame:
    parts = []
    for key in store.shards():
        sources, measured = store.read_sources(key), store.read_measurements(key)
        parts.append(
            pd.DataFrame(
                {
                    "tile": key.tile_id,
                    "id": sources.source_id_N,
                    "ra": sources.ra_N,
                    "dec": sources.dec_N,
                    "x": measured.x_N,
                    "level": np.nanmedian(store.read_cutouts(key)[:, 3], axis=(1, 2)),
                }
            )
        )
    return pd.concat(parts)


def test_every_source_of_the_sky_is_measured_once_on_the_better_skycell(
    delivery: Path, sky_K2: np.ndarray, tmp_path: Path
) -> None:
    with_sky = replace(SURVEY, subtract_sky=False)  # a mosaic's level says which one it is
    summary = extract(
        with_sky, delivery, tmp_path / "s", size=16, workers=1, allow_missing_bands=True
    )
    rows = _rows(CutoutStore.open(tmp_path / "s"))
    assert len(rows) == len(sky_K2)
    order = np.lexsort(rows[["dec", "ra"]].to_numpy().T)
    expected = sky_K2[np.lexsort(sky_K2[:, ::-1].T)]
    np.testing.assert_allclose(rows[["ra", "dec"]].to_numpy()[order], expected)
    # Which cell: the middle between both, in the other's pixels, is OVERLAP / 2 from its edge.
    x_first, _ = _wcs(0).invert(rows["ra"], rows["dec"], with_bounding_box=False)
    np.testing.assert_array_equal(rows["tile"] == CELLS[0], x_first > OVERLAP / 2 - 0.5)
    assert {round(v, -3) for v in rows["level"]} == {5e3, 7e3}  # of the mosaics that were chosen
    id_N = rows["id"].to_numpy()
    assert (id_N >> 46 == 1234).all()  # the identifier of the delivery
    cell_of_id = np.array(CELLS)[(id_N >> 32 & 127) - 48]
    assert (rows["tile"] == cell_of_id).all()
    assert any("taken from the list of the tile" in note for note in summary.notes)
    assert any("no mosaic of band F062" in note for note in summary.notes)


def test_labels_of_older_catalogues_become_identifiers(tmp_path: Path, sky_K2, delivery) -> None:
    lists = []
    for cell, name in enumerate(CELLS):
        lists.append(tmp_path / f"r00001_p_full_{name}_cat.parquet")
        _catalogue(lists[-1], cell, sky_K2, with_spatial_id=False)
    extract(SURVEY, delivery, tmp_path / "s", lists, size=16, workers=1, allow_missing_bands=True)
    rows = _rows(CutoutStore.open(tmp_path / "s"))
    assert rows["id"].is_unique
    assert rows.groupby("tile")["id"].agg(lambda ids: len(set(ids // 10**7))).tolist() == [1, 1]
    listed = pd.read_parquet(lists[0]).set_index("label")
    first = rows[rows["tile"] == CELLS[0]]
    np.testing.assert_allclose(listed.loc[first["id"] % 10**7, "ra"], first["ra"])


def test_the_reddening_of_the_delivery_is_used_before_any_map(tmp_path: Path, sky_K2) -> None:
    """RAD: dust_ebv, mag, "by default from the map of Schlegel, Finkbeiner, and Davis (1998)"."""
    schema = importlib.resources.files("rad") / "resources/schemas/tables"
    text = (schema / "source_catalog_columns-2.1.0.yaml").read_text()
    assert yaml.safe_load(text)["definitions"]["dust_ebv"]["unit"] == "mag"
    path = tmp_path / f"r00001_p_full_{CELLS[0]}_cat.parquet"
    _catalogue(path, 0, sky_K2, with_spatial_id=True)
    table = pq.read_table(path)
    dust_ebv_N = np.linspace(0.01, 0.2, len(table), dtype=np.float32)
    dust_ebv_N[3] = np.nan
    # As roman_datamodels writes a catalogue: the unit is in the field, "None" where there is none.
    field = pa.field("dust_ebv", pa.float32(), metadata={"unit": "mag"})
    table = table.append_column(field, pa.array(dust_ebv_N))
    at = table.schema.get_field_index("label")
    label = pa.field("label", pa.int32(), metadata={"unit": "None"})
    table = table.set_column(at, label, table["label"])
    pq.write_table(table, path)
    joined = read_survey_lists([path], SURVEY)
    np.testing.assert_array_equal(joined.sources.ebv_N, dust_ebv_N)
    assert joined.notes == ()


def test_names_of_other_builds_and_skies() -> None:
    def tile(name: str) -> str | None:
        match = SURVEY.match_mosaic(name)
        return None if match is None else match[0]

    assert tile("r0099101001001001001_r274dp63x31y81_prompt_F158_i2d.asdf") == "r274dp63x31y81"
    assert tile("r00001_p_v01001001001001_r274dp63x31y81_f158_coadd.asdf") == "r274dp63x31y81"
    assert tile("r00001_p_full_270m65x48y69_f129_coadd.asdf") == "270m65x48y69"
    assert tile("cosmos_f158_coadd.asdf") == "cosmos"
    assert tile("r00001_p_full_270p65x48y69_f158_segm.asdf") is None


def test_what_is_wrong_is_said(delivery: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    head = "name: m\npixel_scale_arcsec: 0.055\nbands: [{name: F158, psf_fwhm_arcsec: 0.1, "
    head += "extinction_r: 0.5}]\n"
    mine.write_text(head + 'mosaic_pattern: "*_{tile:[0-9pxy]+}_{band}_coadd.asdf"\n')
    with pytest.raises(MosaicError, match="are both band F158 of tile '270p65x48y69'"):
        find_mosaics(delivery, load_survey(mine))
    for line, words in (
        ('mosaic_pattern: "{tile:[}_{band}.asdf"', "needs a regular expression"),
        ('mosaic_pattern: "{tlie}_{band}.asdf"', "has a brace outside"),
        ("source_pattern: []", "source_pattern must not be empty"),
        ("prefer_mosaics: 3", "prefer_mosaics: expected a list"),
        ("layer: -1", "layer must not be negative"),
        ("skip_mosaic: [a]", "did you mean 'skip_mosaics'"),
        ("source_columns: {source_id: []}", "source_columns: source_id must name a column"),
        ("source_columns: {ra: ''}", "source_columns: ra must name a column"),
        ("source_columns: {dec: RA}", "dec: the column 'RA' appears twice"),
        ("z_spec_max: 0", "z_spec_max must be positive, got 0"),
        ("cutout_size: 100000", "cutout_size must be 8 to 2048, got 100000"),
    ):
        mine.write_text(head + line + "\n")
        with pytest.raises(ConfigError, match=words):
            load_survey(mine)
    bad = tmp_path / f"r00001_p_full_{CELLS[0]}_cat.parquet"
    pd.DataFrame({"label": [10**7], "ra": [RA], "dec": [DEC]}).to_parquet(bad)
    with pytest.raises(SourceListError, match="'label' must hold 0 to 9999999"):
        extract(SURVEY, delivery, tmp_path / "s", [bad], workers=1, allow_missing_bands=True)
    cut = tmp_path / "cut_f158_coadd.asdf"
    cut.write_bytes((delivery / f"r00001_p_full_{CELLS[0]}_f158_coadd.asdf").read_bytes()[:500])
    assert exposure_time_s(cut) == 0
