"""`info` against what the readers themselves say; `config` against the loaders."""

import gzip
import hashlib
import json
import shutil
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from astropy.io import fits
from astropy.table import Table
from astropy.wcs import WCS
from click.testing import CliRunner, Result

from builders.models import tiny_checkpoint
from photozhpc.catalog.photoz_catalog import SCHEMA_VERSION, catalog_schema
from photozhpc.cli import main
from photozhpc.config import KINDS, bundled_configs, from_mapping, load_yaml
from photozhpc.errors import PhotozError
from photozhpc.info.configs import load_config
from photozhpc.info.describe import about
from photozhpc.model import bundled_checkpoint, load_checkpoint, save_checkpoint
from photozhpc.model.train_config import TrainConfig
from photozhpc.mosaic.tile import read_tile
from photozhpc.sky import load_sky_config
from photozhpc.store import CutoutStore
from photozhpc.survey import load_survey, survey_names
from photozhpc.workers.site import load_site


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def info(path: Path, *options: object) -> dict:
    """What `info --json` says; and the lines without --json must be few and name the kind."""
    done = run("info", path, "--json", *options)
    assert (done.exit_code, done.stderr) == (0, ""), done.stderr
    found = json.loads(done.stdout, parse_constant=pytest.fail)
    lines = run("info", path, *options).stdout.splitlines()
    assert lines[0] == f"{path}: {found['kind']}"
    assert len(lines) <= 24
    assert max(map(len, lines)) < 900
    return found


def test_a_store(small_store: CutoutStore, tmp_path: Path) -> None:
    found = info(small_store.path)
    z_spec_N = np.concatenate([small_store.read_sources(k).z_spec_N for k in small_store.shards()])
    files = [p for tile in small_store.tiles() for p in (small_store.path / tile).rglob("*")]
    n_bytes = sum(p.stat().st_size for p in files if p.is_file())
    assert found["kind"] == "store"
    assert found["sources"] == len(z_spec_N)
    assert found["labelled"] == np.isfinite(z_spec_N).sum() > 0
    assert found["bytes"] == n_bytes
    assert found["shards"] == len(small_store.shards())
    assert (found["cutout_size_pix"], found["shard_len"]) == (48, 64)
    assert (found["state"], found["tiles"], found["survey"]) == ("finished", 2, "roman-sim")
    assert found["fingerprint"] == small_store.fingerprint()
    half = tmp_path / "half"
    shutil.copytree(small_store.path, half)
    sorted((half / ".manifests").glob("*.json"))[0].unlink()
    assert info(half)["state"] == "not finished"
    assert info(half)["tiles_missing"] == 1


def test_a_checkpoint(tmp_path: Path) -> None:
    path = bundled_checkpoint("roman-sim")
    found, known = info(path), load_checkpoint(path)
    assert found["sha256"] == known.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert found["parameters"] == sum(t.numel() for t in known.model.state_dict().values())
    assert found["bands"] == list(known.survey.band_names)
    assert found["crop_pix"] == known.pita.config.crop
    assert found["density_bins"] == known.pita.config.density_bins
    assert found["calibration"] == known.training["calibration"]
    assert found["validation"] == {}  # all labels were for training
    training = {**known.training, "refit_validation": {"nmad": 0.05, "outlier_fraction": 0.1}}
    other = save_checkpoint(tmp_path / "m.safetensors", known.model, known.survey, training)
    assert info(other)["validation"]["nmad"] == 0.05


def test_a_damaged_checkpoint_is_one_line(tmp_path: Path) -> None:
    content = bundled_checkpoint("roman-sim").read_bytes()
    n = int.from_bytes(content[:8], "little")
    for name, damaged in {
        "short": content[:-5],
        "header": content[: n // 2],
        "endless": (1 << 62).to_bytes(8, "little") + content[8:],
        "text": b"no model at all",
        "odd": (12).to_bytes(8, "little") + b'{"a":[1,2]} ',
        "deep": (40000).to_bytes(8, "little") + b"[" * 40000,
        "foreign": (2).to_bytes(8, "little") + b"{}",
    }.items():
        path = tmp_path / f"{name}.safetensors"
        path.write_bytes(damaged)
        done = run("info", path)
        assert done.exit_code == 1, name
        (line,) = done.stderr.splitlines()
        assert line.startswith(f"Error: {path}: ")


def test_a_roman_mosaic(small_sky: Path, tmp_path: Path) -> None:
    path = sorted(small_sky.glob("*_f129_coadd.asdf"))[0]
    found, tile = info(path), read_tile(path, load_survey("roman-sim"))
    assert found["bands"] == ["F129"]
    assert tuple(found["shape"]) == tile.shape_HW == (700, 700)
    assert found["pixel_scale_arcsec"] == pytest.approx(tile.pixel_scale_arcsec)
    ra, dec = tile.pixel_to_sky([349.5, 0, 0, 699, 699], [349.5, 0, 699, 699, 0])
    assert np.allclose([found["centre_deg"], *found["corners_deg"]], np.c_[ra, dec], atol=1e-7)
    assert found["unit"] == "MJy / sr" or found["unit"] == "MJy/sr"
    # 1 MJy/sr is 1e15 nJy/sr
    sr = tile.pixel_area_arcsec2 * np.radians(1 / 3600) ** 2
    assert found["njy_per_unit"]["F129"] == pytest.approx(1e15 * sr, rel=1e-6)
    assert found["survey_guessed"] == "by its name, which also fits roman-sim"
    assert info(path, "--survey", "roman-sim")["survey"] == "roman-sim"
    cut = tmp_path / path.name
    cut.write_bytes(path.read_bytes()[:-100_000])
    done = run("info", cut)
    assert done.exit_code == 1
    assert "truncated" in done.stderr
    done = run("info", path, "--survey", "candels")
    assert done.exit_code == 1
    assert "'F129'" in done.stderr


def hst(name: Path, shape: tuple[int, int] = (60, 80)) -> WCS:
    """Write a drizzle as of CANDELS."""
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    wcs.wcs.crval, wcs.wcs.crpix = [53.1, -27.8], [40.5, 30.5]
    wcs.wcs.cdelt = [-0.06 / 3600, 0.06 / 3600]
    header = wcs.to_header()
    header["BUNIT"] = "ELECTRONS/S"
    header["PHOTFLAM"], header["PHOTPLAM"] = 1.5e-20, 15369.0
    image = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    fits.PrimaryHDU(image, header).writeto(name)
    return wcs


def test_an_hst_mosaic_plain_packed_and_compressed(tmp_path: Path) -> None:
    path = tmp_path / "hlsp_candels_hst_wfc3_gs-tot_f160w_v1.0_drz.fits"
    wcs = hst(path)
    found = info(path)
    assert (found["survey"], found["bands"], found["has_errors"]) == ("candels", ["F160W"], False)
    zero_point = -2.5 * np.log10(1.5e-20) - 5 * np.log10(15369.0) - 2.408
    assert found["njy_per_unit"]["F160W"] == pytest.approx(10 ** (0.4 * (31.4 - zero_point)))
    assert "no error plane" in found["notes"][0]
    assert np.allclose(found["corners_deg"][1], wcs.pixel_to_world_values(79, 0), atol=1e-7)
    assert found["pixel_scale_arcsec"] == pytest.approx(0.06)
    packed = tmp_path / "gz" / f"{path.name}.gz"
    packed.parent.mkdir()
    packed.write_bytes(gzip.compress(path.read_bytes()))
    tiled = tmp_path / "fz" / f"{path.name}.fz"
    tiled.parent.mkdir()
    with fits.open(path) as hdus:
        fits.CompImageHDU(hdus[0].data, hdus[0].header).writeto(tiled)
    for other in (packed, tiled):
        same = info(other)
        for key in ("bands", "corners_deg", "shape", "unit"):
            assert same[key] == found[key]
    packed.write_bytes(packed.read_bytes()[:-500])
    assert run("info", packed).exit_code == 1


def test_a_large_packed_file_is_not_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "hlsp_candels_hst_wfc3_gs-tot_f160w_v1.0_drz.fits"
    hst(path)
    packed = tmp_path / f"{path.name}.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    monkeypatch.setattr("photozhpc.info.mosaics._MAX_PACKED_BYTES", 10)
    found = info(packed)
    assert found["shape"] == [60, 80]
    assert "only its first header" in found["note"]


def test_a_mosaic_that_no_survey_fits(tmp_path: Path) -> None:
    fits.PrimaryHDU(np.ones((8, 9), np.float32)).writeto(tmp_path / "odd.fits")
    found = info(tmp_path / "odd.fits")
    assert found["shape"] == [8, 9]
    assert found["wcs"] == "none"
    assert "no survey that comes with photozhpc fits" in found["note"]


def test_a_mosaic_on_another_pixel_scale_says_so(tmp_path: Path) -> None:
    path = tmp_path / "hlsp_candels_hst_wfc3_gs-tot_f160w_v1.0_drz.fits"
    hst(path)
    with fits.open(path, mode="update") as hdus:
        for key in ("CDELT1", "CDELT2"):
            hdus[0].header[key] *= 2
    assert "extract would refuse this mosaic" in info(path)["note"]


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder as `infer` leaves it: two parts of 3 rows."""
    out = tmp_path_factory.mktemp("run")
    (out / "catalog").mkdir()
    schema = catalog_schema(load_survey("roman-sim"))
    provenance = {
        "survey": "roman-sim",
        "command": "photozhpc infer",
        "checkpoint": "/m",
        "store": "/s",
    }
    schema = schema.with_metadata(
        {**schema.metadata, "photozhpc.provenance": json.dumps(provenance)}
    )
    columns = [pa.array(["t"] * 3 if f.type == pa.string() else [1] * 3, f.type) for f in schema]
    table = pa.Table.from_arrays(columns, schema=schema)
    for part in range(2):
        pq.write_table(table, out / "catalog" / f"part-{part:06d}.parquet")
    document = {"format": 1, "photozhpc": "0.1.0", "n_parts": 2, "n_rows": 6, **provenance,
                "identity": {"checkpoint_sha256": "abc"}}  # fmt: skip
    (out / "run.json").write_text(json.dumps(document))
    return out


def test_a_catalogue_and_a_part(catalogue: Path, tmp_path: Path) -> None:
    for path in (catalogue, catalogue / "catalog"):
        found = info(path)
        assert (found["rows"], found["state"], found["parts"]) == (6, "finished", 2)
        assert found["columns"]["ra"] == "deg"
        assert found["columns"]["aper04_f158_flux"] == "nJy"
        assert found["schema_version"] == str(SCHEMA_VERSION)
        assert found["command"] == "photozhpc infer"
        assert found["checkpoint_sha256"] == "abc"
    part = info(catalogue / "catalog" / "part-000001.parquet")
    assert (part["kind"], part["rows"], part["survey"]) == ("part of a catalogue", 3, "roman-sim")
    half = tmp_path / "half"
    shutil.copytree(catalogue, half)
    (half / "catalog" / "part-000000.parquet").unlink()
    found = info(half)
    assert (found["rows"], found["rows_due"]) == (None, 6)
    assert found["state"] == "not finished: 1 of 2 parts"


def test_tables(small_sky: Path, tmp_path: Path) -> None:
    listed = sorted(small_sky.glob("*_cat.parquet"))[0]
    found = info(listed)
    assert found["kind"] == "table (Parquet)"
    assert found["rows"] == len(pq.read_table(listed))
    table = Table({"source_id": np.arange(7), "ra": np.ones(7)}, units={"ra": "deg"})
    for name in ("t.fits", "t.ecsv", "t.csv"):
        table.write(tmp_path / name)
        found = info(tmp_path / name)
        assert found["rows"] == 7, name
        assert list(found["columns"]) == ["source_id", "ra"]
        if name != "t.csv":
            assert found["columns"]["ra"] == "deg"


def test_a_long_text_table_is_estimated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = "".join(f"{i:07d},{i / 7:.6f}\n" for i in range(100, 200_000))
    (tmp_path / "long.csv").write_text(f"source_id,ra\n{rows}")
    monkeypatch.setattr("photozhpc.info.tables._MAX_COUNTED_BYTES", 1000)
    found = info(tmp_path / "long.csv")
    assert found["rows_are_exact"] is False
    assert found["rows"] == pytest.approx(199_900, rel=0.05)


def test_a_hats_catalogue(tmp_path: Path) -> None:
    properties = pytest.importorskip("hats.catalog.dataset.table_properties").TableProperties
    properties(
        catalog_name="deep", catalog_type="object", total_rows=12345, ra_column="ra",
        dec_column="dec", hats_order=4,
    ).to_properties_file(tmp_path)  # fmt: skip
    (tmp_path / "dataset").mkdir()
    schema = pa.schema([pa.field("ra", pa.float64(), metadata={"unit": "deg"})])
    pq.write_metadata(schema, tmp_path / "dataset" / "_common_metadata")
    found = info(tmp_path)
    assert (found["kind"], found["name"], found["rows"]) == ("HATS catalogue", "deep", 12345)
    assert found["columns"] == {"ra": "deg"}
    assert found["position_columns"] == ["ra", "dec"]


def test_a_training_run(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text('{"epoch": 1, "step": 5}\n{"epoch": 2, "step": 10}\n{"ep')
    assert info(tmp_path)["last_epoch"] == {"epoch": 2, "step": 10}
    assert info(tmp_path)["state"] == "not finished"
    tiny_checkpoint(tmp_path / "model.safetensors")
    found = info(tmp_path)
    assert (found["state"], found["crop_pix"]) == ("finished", 32)


def test_what_is_nothing_of_ours_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "empty.fits").touch()
    (tmp_path / "junk").write_bytes(bytes(range(256)))
    (tmp_path / "junk.fits").write_bytes(b"SIMPLE  =                    T")
    (tmp_path / "junk.asdf").write_bytes(b"#ASDF 1.0.0\n")
    (tmp_path / "junk.gz").write_bytes(b"\x1f\x8bjunk")
    (tmp_path / "junk.parquet").write_bytes(b"PAR1 and no more")
    (tmp_path / "junk.csv").write_bytes(b"no commas\n")
    (tmp_path / "junk.yaml").write_text("a: 1\n")
    (tmp_path / "list.yaml").write_text("- 1\n")
    (tmp_path / "folder").mkdir()
    for folder, file in (("zarr", "zarr.json"), ("run", "run.json"), ("hats", "properties")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / file).write_text("{")
    paths = [path for path in tmp_path.iterdir() if path.name != "__pycache__"]
    for path in [*paths, tmp_path / "none"]:
        for options in ((), ("--json",)):
            done = run("info", path, *options)
            assert done.exit_code == 1, path
            assert done.stdout == ""
            (line,) = done.stderr.splitlines()
            assert line.startswith(f"Error: {path}"), line


def test_info_of_a_large_mosaic_reads_no_pixels(tmp_path: Path) -> None:
    """A sparse file of 6 GB, described in seconds, with its error plane."""
    header = fits.Header({"SIMPLE": True, "BITPIX": -32, "NAXIS": 2, "NAXIS1": 28000,
                          "NAXIS2": 28000, "FILTER": "F160W", "PHOTFLAM": 1e-20,
                          "PHOTPLAM": 15369.0, "EXTEND": True})  # fmt: skip
    n_bytes = -(-28000 * 28000 * 4 // 2880) * 2880
    error = fits.Header({"XTENSION": "IMAGE", "BITPIX": -32, "NAXIS": 2, "NAXIS1": 28000,
                         "NAXIS2": 28000, "PCOUNT": 0, "GCOUNT": 1, "EXTNAME": "ERR"})  # fmt: skip
    path = tmp_path / "large.fits"
    with open(path, "wb") as stream:
        for part in (header, error):
            stream.write(part.tostring().encode())
            stream.seek(n_bytes, 1)
        stream.truncate()
    started = time.monotonic()
    found = about(path)
    assert time.monotonic() - started < 5
    assert found["shape"] == [28000, 28000]
    assert found["bytes"] > 6e9
    assert found["has_errors"]


@pytest.mark.parametrize("name", survey_names())
def test_a_survey_shown_loads_as_the_same(name: str, tmp_path: Path) -> None:
    done = run("config", "show", name)
    assert (done.exit_code, done.stderr) == (0, "")
    (tmp_path / "my.yaml").write_text(done.stdout)
    assert load_survey(tmp_path / "my.yaml") == load_survey(name)
    as_json = json.loads(run("config", "show", name, "--json").stdout, parse_constant=pytest.fail)
    assert as_json == load_yaml(tmp_path / "my.yaml")
    again = run("config", "show", tmp_path / "my.yaml")
    assert again.stdout.splitlines()[1:] == done.stdout.splitlines()[1:]
    assert info(tmp_path / "my.yaml")["kind"] == "config: survey"


def test_all_others_load_as_the_same(tmp_path: Path) -> None:
    for name in bundled_configs("site"):
        path = tmp_path / f"{name}.yaml"
        path.write_text(run("config", "show", name).stdout)
        assert load_site(path) == load_site(name)
        assert load_config(path).kind == "site"
    for name in bundled_configs("recipe"):
        path = tmp_path / "recipe.yaml"
        path.write_text(run("config", "show", name).stdout)
        shown = from_mapping(TrainConfig, load_yaml(path), "shown")
        assert shown == load_config(name).config
        assert load_config(path).kind == "recipe"
    path = tmp_path / "sky.yaml"
    path.write_text(run("config", "show", "sky/simple").stdout)
    assert load_sky_config(path) == load_sky_config("sky/simple")
    assert load_config(path).kind == "sky"


def test_defaults_and_meanings_are_shown() -> None:
    text = run("config", "show", "roman-sim").stdout
    assert "\nsky_annulus_arcsec: [2.4, 2.8]\n" in text
    assert "# cutout_size: side of the stored cutouts, pixels." in text
    assert "None" not in text


def test_the_list_has_them_all() -> None:
    lines = run("config", "list").stdout.splitlines()
    assert [line.split()[1] for line in lines] == list(bundled_configs(*KINDS))
    entries = json.loads(run("config", "list", "--json").stdout)
    assert all(Path(entry["path"]).is_file() and entry["about"] for entry in entries)


def test_faults_in_a_config_are_named_by_its_own_loader(tmp_path: Path) -> None:
    survey = (tmp_path / "s.yaml", "name: x\nbandz: []\npixel_scale_arcsec: 0.1\n", "'bands'")
    site = (
        tmp_path / "t.yaml",
        "extract: {cpus_per_task: 0, time: '01:00:00'}\ninfer: {}\n",
        "cpus_per_task must be",
    )
    recipe = (tmp_path / "r.yaml", "out: x\nepoch: 3\n", "'epochs'")
    for path, text, word in (survey, site, recipe):
        path.write_text(text)
        done = run("config", "show", path)
        assert done.exit_code == 1
        (line,) = done.stderr.splitlines()
        assert word in line
        assert str(path) in line
    done = run("config", "show", "candel")
    assert done.exit_code == 1
    assert "did you mean 'candels'" in done.stderr
    with pytest.raises(PhotozError, match="no such config file"):
        load_config(tmp_path / "none.yaml")
