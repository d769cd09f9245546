"""Catalogues in the layout that pita-z reads become stores that hold the same."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from photozhpc.cli import main
from photozhpc.errors import StoreError
from photozhpc.model.colours import colour_features
from photozhpc.mosaic.photometry import PhotFlag, sum_circles
from photozhpc.pita_z import hdf5
from photozhpc.pita_z.hdf5 import import_hdf5
from photozhpc.pita_z.units import FluxFeatures, njy_per_count
from photozhpc.store import CutoutStore, ShardKey
from photozhpc.store.loader import typical_noise
from photozhpc.survey import load_survey

h5py = pytest.importorskip("h5py")
SURVEY = replace(load_survey("candels"), aperture_radii_arcsec=(0.2, 0.4))
R = np.array([band.extinction_r for band in SURVEY.bands])
N, SIZE = 23, 40
SIGMA_C = np.array([0.002, 0.003, 0.01, 0.02])  # counts


def catalogue(seed: int = 0, dtype: str = "f4") -> dict[str, Any]:
    """Return the datasets of a file as the reference's script writes them."""
    rng = np.random.default_rng(seed)
    flux_ujy_NC = rng.uniform(1, 50, (N, 4))
    ebv_N = rng.uniform(0, 0.1, N)
    log_NC = np.log10(flux_ujy_NC) + 0.4 * ebv_N[:, None] * R
    features_NC = np.concatenate([log_NC[:, 1:] - log_NC[:, :-1], log_NC[:, 3:]], axis=1)
    image_NCSS = rng.normal(size=(N, 4, SIZE, SIZE)) * SIGMA_C[:, None, None]
    image_NCSS[:, :, SIZE // 2, SIZE // 2] += flux_ujy_NC
    redshift_N = np.where(np.arange(N) % 3 == 0, -1, rng.uniform(0.1, 3, N))
    return {
        "images": image_NCSS.astype(dtype),
        "redshifts": redshift_N.astype(dtype),
        "ebvs": ebv_N.astype("f4"),
        "use_redshift_1": (redshift_N > 0).astype(int),
        "use_redshift_2": ((redshift_N > 0) & (np.arange(N) % 2 == 0)).astype(int),
        "dered_color_features": features_NC.astype(dtype),
    }


def write(path: Path, datasets: dict[str, Any]) -> Path:
    with h5py.File(path, "w") as file:
        for name, values in datasets.items():
            file[name] = values
    return path


def read(store_path: Path) -> tuple[Any, ...]:
    """Return everything in a store: sources, measurements and cutouts, joined."""
    store = CutoutStore.open(store_path)
    assert store.verify() == []
    store.check_complete()
    sources = [store.read_sources(key) for key in store.shards()]
    measured = [store.read_measurements(key) for key in store.shards()]

    def join(parts: list[Any]) -> Any:
        names = parts[0].__dataclass_fields__
        return type(parts[0])(*(np.concatenate([getattr(p, n) for p in parts]) for n in names))

    cutout_NCSS = np.concatenate([store.read_cutouts(key) for key in store.shards()])
    return join(sources), join(measured), cutout_NCSS


@pytest.mark.parametrize("dtype", ["f2", "f4"])
def test_the_store_holds_what_the_file_does(dtype: str, tmp_path: Path) -> None:
    given = catalogue(dtype=dtype)
    path = write(tmp_path / "c.hdf5", given)
    summary = import_hdf5(path, SURVEY, tmp_path / "store", label_f=2, shard_len=8)
    sources, _, cutout_NCSS = read(tmp_path / "store")
    assert (summary.sources, summary.skipped) == (N, 0)
    assert summary.labelled == given["use_redshift_2"].sum()
    scale_C = njy_per_count(SURVEY)[:, None, None]
    np.testing.assert_array_equal(cutout_NCSS, given["images"].astype("f4") * scale_C)
    expected_z = np.where(given["use_redshift_2"] == 1, given["redshifts"], np.nan)
    np.testing.assert_array_equal(sources.z_spec_N, expected_z.astype("f4"))
    np.testing.assert_array_equal(sources.source_id_N, np.arange(N))
    np.testing.assert_array_equal(sources.ebv_N, given["ebvs"])
    assert np.isnan(sources.ra_N).all()
    noise_C, flux_err_C = typical_noise(CutoutStore.open(tmp_path / "store"), 1)
    np.testing.assert_allclose(noise_C / scale_C[:, 0, 0], SIGMA_C, rtol=0.05)
    np.testing.assert_allclose(
        flux_err_C, noise_C * np.sqrt(np.pi) * 0.4 / SURVEY.pixel_scale_arcsec, rtol=1e-3
    )


@pytest.mark.parametrize("red_over_blue", [True, False])
@pytest.mark.parametrize("flux_band", [1, -1])
def test_training_sees_the_files_colours(
    red_over_blue: bool, flux_band: int, tmp_path: Path
) -> None:
    features = FluxFeatures(red_over_blue, flux_band)
    given = catalogue()
    flux_NC = FluxFeatures().to_flux(given["dered_color_features"])
    given["dered_color_features"] = features.from_flux(flux_NC).astype("f4")
    path = write(tmp_path / "c.hdf5", given)
    import_hdf5(path, SURVEY, tmp_path / "store", features=features)
    sources, measured, _ = read(tmp_path / "store")
    # a softening far below the fluxes: there the asinh of colour_features is the logarithm
    colour_NM = colour_features(measured.flux_NCR[:, :, 0], np.full(4, 0.1), sources.ebv_N, R)
    file_NM = given["dered_color_features"]
    sign = -1 if red_over_blue else 1
    np.testing.assert_allclose(colour_NM[:, :3], sign * file_NM[:, :3], atol=2e-6)
    log_NC = np.log10(flux_NC)
    np.testing.assert_allclose(colour_NM[:, 3], log_NC[:, -1], atol=2e-6)
    np.testing.assert_allclose(file_NM[:, 3] + 3, log_NC[:, flux_band], atol=2e-6)


@pytest.mark.parametrize("made_with", [FluxFeatures(True, 1), FluxFeatures(False, -1)])
def test_the_meaning_of_the_features_is_read_off_the_fluxes(
    made_with: FluxFeatures, tmp_path: Path
) -> None:
    given = catalogue()
    dereddened_NC = FluxFeatures().to_flux(given["dered_color_features"])
    flux_NC = dereddened_NC / 10 ** (0.4 * given["ebvs"][:, None] * R)
    given["fluxes"] = (flux_NC / 1000).astype("f2")
    given["dered_color_features"] = made_with.from_flux(dereddened_NC).astype("f2")
    summary = import_hdf5(write(tmp_path / "c.hdf5", given), SURVEY, tmp_path / "store")
    _, measured, _ = read(tmp_path / "store")
    np.testing.assert_allclose(measured.flux_NCR[:, :, 0], flux_NC, rtol=0.02)
    assert SURVEY.band_names[made_with.flux_band] in summary.notes[-1]
    given["fluxes"] = given["fluxes"][:, ::-1] * 7
    with pytest.raises(StoreError, match="does not follow from 'fluxes'"):
        import_hdf5(write(tmp_path / "d.hdf5", given), SURVEY, tmp_path / "other")


def test_fluxes_alone_are_taken_as_they_are(tmp_path: Path) -> None:
    given = catalogue()
    del given["dered_color_features"]
    given["fluxes"] = np.random.default_rng(3).normal(1, 5, (N, 4))
    import_hdf5(write(tmp_path / "c.hdf5", given), SURVEY, tmp_path / "store")
    _, measured, _ = read(tmp_path / "store")
    expected_NCR = np.repeat(given["fluxes"][:, :, None] * 1000, 2, axis=2)
    np.testing.assert_allclose(measured.flux_NCR, expected_NCR, rtol=1e-6)
    np.testing.assert_allclose(measured.kron_flux_NC, expected_NCR[:, :, 0], rtol=1e-6)
    assert np.isnan(measured.kron_flux_err_NC).all()


def test_without_fluxes_the_cutouts_are_measured(tmp_path: Path) -> None:
    given = catalogue()
    del given["dered_color_features"]
    given["images"][2, 1] = 0  # off this band's mosaic
    given["images"][3, 0, SIZE // 2, SIZE // 2 + 1] = np.inf
    given |= {"custom_ids": np.arange(N) * 7 + 3, "ra": np.arange(N), "dec": -np.arange(N) / 2}
    path = write(tmp_path / "c.hdf5", given)
    summary = import_hdf5(path, SURVEY, tmp_path / "store", shard_len=16)
    sources, measured, cutout_NCSS = read(tmp_path / "store")
    assert "measured" in summary.notes[-1]
    np.testing.assert_array_equal(sources.source_id_N, np.arange(N) * 7 + 3)
    np.testing.assert_array_equal(sources.dec_N, -np.arange(N) / 2)
    assert np.isnan(cutout_NCSS[2, 1]).all()
    assert np.isnan(cutout_NCSS[3, 0, SIZE // 2, SIZE // 2 + 1])
    radius_pix = np.array(SURVEY.aperture_radii_arcsec) / SURVEY.pixel_scale_arcsec
    for n, c in np.ndindex(N, 4):
        flux_R, _, flags_R = sum_circles(cutout_NCSS[n, c], SIZE // 2, SIZE // 2, radius_pix)
        np.testing.assert_allclose(measured.flux_NCR[n, c], flux_R[0], rtol=1e-5)
        assert measured.flags_NC[n, c] == np.bitwise_or.reduce(flags_R[0])
    assert measured.flags_NC[2, 1] & PhotFlag.NO_DATA
    assert measured.flags_NC[3, 0] == PhotFlag.NON_FINITE


def test_the_command_answers_in_json(tmp_path: Path) -> None:
    path = write(tmp_path / "c.hdf5", catalogue())
    words = ["import-hdf5", str(path), "--survey", "candels", "--store", str(tmp_path / "s")]
    told = CliRunner().invoke(main, [*words, "--json"])
    assert told.exit_code == 0, told.output
    answer = json.loads(told.stdout)
    n_labels = int(catalogue()["use_redshift_1"].sum())
    assert (answer["sources"], answer["with_z_spec"]) == (N, n_labels)


def test_a_stopped_import_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hdf5, "SHARDS_PER_TILE", 2)
    path = write(tmp_path / "a b.hdf5", catalogue())

    def stop(done: int, total: int) -> None:
        if done == 12:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        import_hdf5(path, SURVEY, tmp_path / "store", shard_len=4, progress=stop)
    store = CutoutStore.open(tmp_path / "store")
    assert store.tiles() == {"a-b-000000000": 8}
    with pytest.raises(StoreError, match="not finished"):
        store.check_complete()
    with pytest.raises(StoreError, match="other tiles, or with other sources"):
        import_hdf5(path, SURVEY, tmp_path / "store", label_f=2, shard_len=4)
    summary = import_hdf5(path, SURVEY, tmp_path / "store", shard_len=4)
    assert (summary.sources, summary.skipped) == (N, 8)
    import_hdf5(path, SURVEY, tmp_path / "whole", shard_len=N)
    for again, once in zip(read(tmp_path / "store"), read(tmp_path / "whole"), strict=True):
        for name in getattr(once, "__dataclass_fields__", ["T"]):
            np.testing.assert_array_equal(getattr(again, name), getattr(once, name))


def test_only_a_block_of_images_is_read_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hdf5, "_BLOCK_LEN", 4)
    seen: list[int] = []
    whole = h5py.Dataset.__getitem__

    def watched(self: Any, rows: Any, *rest: Any) -> Any:
        if self.name == "/images":
            seen.append(rows.stop - rows.start)
        return whole(self, rows, *rest)

    monkeypatch.setattr(h5py.Dataset, "__getitem__", watched)
    import_hdf5(write(tmp_path / "c.hdf5", catalogue()), SURVEY, tmp_path / "store", shard_len=8)
    assert max(seen) == 4
    assert sum(seen) == N


def test_labels_without_flags_and_with_one(tmp_path: Path) -> None:
    given = catalogue()
    del given["use_redshift_1"], given["use_redshift_2"]
    summary = import_hdf5(write(tmp_path / "a.hdf5", given), SURVEY, tmp_path / "a")
    assert summary.labelled == (given["redshifts"] > 0).sum()
    given["use_redshift"] = np.arange(N) < 5
    summary = import_hdf5(write(tmp_path / "b.hdf5", given), SURVEY, tmp_path / "b")
    assert summary.labelled == (given["redshifts"][:5] > 0).sum()


def test_marks_for_unknown_are_no_labels_and_no_dust(tmp_path: Path) -> None:
    given = catalogue()
    del given["use_redshift_1"], given["use_redshift_2"]
    given["redshifts"][:3], given["ebvs"][:2] = [99, 9.99, 1e20], [99, -99]
    summary = import_hdf5(write(tmp_path / "a.hdf5", given), SURVEY, tmp_path / "a")
    assert summary.labelled == (given["redshifts"][3:] > 0).sum()
    assert any("3 values of 'redshifts' are not redshifts" in note for note in summary.notes)
    assert any("1 values of 'ebvs' are not E(B-V)" in note for note in summary.notes)
    store = CutoutStore.open(tmp_path / "a")
    ebv_N = np.concatenate([store.read_sources(key).ebv_N for key in store.shards()])
    assert ebv_N.max() < 20


def test_faults_of_the_file_are_named(tmp_path: Path) -> None:
    given = catalogue()
    image_NCSS = given["images"]
    faults: list[tuple[dict[str, Any], str]] = [
        ({"images": None}, "no dataset 'images'; it has dered_color_features, ebvs"),
        ({"ebvs": None}, "no dataset 'ebvs'"),
        ({"redshifts": None}, "no dataset 'redshifts'"),
        (
            {"images": image_NCSS.transpose(0, 2, 3, 1)},
            r"expected \(N, 4, S, S\) with the bands F606W",
        ),
        ({"images": image_NCSS[0]}, "'images' has shape"),
        ({"images": image_NCSS[:0]}, "'images' has shape"),
        ({"images": image_NCSS.astype("S4")}, "'images' must be a dataset of numbers"),
        ({"ebvs": given["ebvs"][:-1]}, r"'ebvs' has shape \(22,\), expected \(23,\)"),
        ({"dered_color_features": np.zeros((N, 5))}, "'dered_color_features' has shape"),
        ({"redshifts": np.array([b"a"] * N)}, "'redshifts' must be a dataset of numbers"),
        ({"custom_ids": np.zeros(N)}, "'custom_ids' must be a dataset of integers"),
        ({"custom_ids": np.zeros(N, int)}, "identifier appears twice"),
        (
            {"custom_ids": np.arange(N, dtype=np.uint64) + np.uint64(2**63)},
            "does not fit an int64",
        ),
        ({"use_redshift_1": None}, "no 'use_redshift_1'; its labels are use_redshift_2"),
    ]
    for changes, message in faults:
        datasets = {k: v for k, v in (given | changes).items() if v is not None}
        with pytest.raises(StoreError, match=message):
            import_hdf5(write(tmp_path / "c.hdf5", datasets), SURVEY, tmp_path / "store")
    with h5py.File(tmp_path / "c.hdf5", "w") as file:
        file.create_group("images")
    with pytest.raises(StoreError, match="must be a dataset of numbers, it is <HDF5 group"):
        import_hdf5(tmp_path / "c.hdf5", SURVEY, tmp_path / "store")
    assert not (tmp_path / "store").exists()


def test_damaged_files_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "c.hdf5"
    with pytest.raises(StoreError, match="no such file"):
        import_hdf5(path, SURVEY, tmp_path / "store")
    with h5py.File(path, "w") as file:
        for name, values in catalogue().items():
            file.create_dataset(name, data=values, fletcher32=True)
    whole = path.read_bytes()
    for content in (b"", b"not HDF5" * 100, whole[:300], whole[: len(whole) // 2]):
        path.write_bytes(content)
        with pytest.raises(StoreError, match="not an HDF5 file, or cut short"):
            import_hdf5(path, SURVEY, tmp_path / "store")
    damaged = bytearray(whole)
    start = whole.find(catalogue()["images"][5, 0, 0, :4].tobytes())
    damaged[start : start + 4] = b"\xff\x00\xff\x00"
    path.write_bytes(damaged)
    with pytest.raises(StoreError, match="'images' cannot be read"):
        import_hdf5(path, SURVEY, tmp_path / "store")
    assert CutoutStore.open(tmp_path / "store").shards() == list[ShardKey]()
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(StoreError, match=r"pip install 'photozhpc\[hdf5\]'"):
        import_hdf5(path, SURVEY, tmp_path / "store")
