"""From mosaics to a report with `import photozhpc`, and without a main guard."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import photozhpc
from builders.commands import run
from builders.models import TINY_RESNET
from builders.training import TINY
from photozhpc.config import to_mapping
from photozhpc.errors import CatalogError, ConfigError, StoreError
from photozhpc.model.train_config import TrainConfig


def recipe(out: Path) -> dict:
    config: TrainConfig = replace(
        TINY, out=str(out), method="supervised", model=TINY_RESNET, density_steps=0, epochs=1
    )
    return to_mapping(replace(config, expert_steps=40))


def test_what_a_stage_makes_is_what_the_next_takes(small_sky, tmp_path) -> None:
    listed = photozhpc.detect(small_sky, tmp_path / "found.parquet", "roman-sim", workers=1)
    assert Path(listed).is_file()
    assert listed.facts["sources"] > 100
    store = photozhpc.extract(small_sky, tmp_path / "store", "roman-sim", size=48, workers=1)
    assert str(store) == str(tmp_path / "store")
    assert repr(store) == store.text
    model = photozhpc.train(recipe(tmp_path / "run"), store)
    assert model.facts["kind"] == "checkpoint"
    other = photozhpc.calibrate(model, store, tmp_path / "calibrated.safetensors")
    catalogue = photozhpc.infer(
        "roman-sim", store, other, tmp_path / "out", workers=1, device="cpu", pdf="quantiles"
    )
    table = photozhpc.read_catalog(catalogue)
    assert table.num_rows == store.facts["sources"] == catalogue.facts["rows"]
    assert sum(len(part.source_id_N) for part in photozhpc.read_pdf(catalogue)) == table.num_rows
    truth = f"{small_sky}/*_truth.parquet"
    accuracy = photozhpc.evaluate(catalogue, truth)
    assert np.isfinite(accuracy.facts["overall"]["nmad"]["value"])
    page = photozhpc.report(catalogue, [truth])
    assert Path(page).read_text().startswith("<!doctype html>")
    fits = photozhpc.export(catalogue, "fits", tmp_path / "c.fits")
    assert fits.facts["sources"] + fits.facts["left_out"] == table.num_rows

    ids = table.to_pandas().dropna(subset=["photoz"])["source_id"].tolist()[:7]
    pictures = [
        photozhpc.plot_pdf(catalogue, ids),
        photozhpc.plot_pdf(catalogue, ids[0], z_max=2.0),
        photozhpc.plot_cutouts(store, ids, catalogue),
        photozhpc.plot_cutouts(photozhpc.CutoutStore.open(str(store)), ids[0]),
    ]
    for number, picture in enumerate(pictures):
        assert picture._repr_png_().startswith(b"\x89PNG")
        picture.save(tmp_path / f"{number}.png")
        assert (tmp_path / f"{number}.png").stat().st_size > 5000
    assert len(pictures[0].figure.axes) == 7
    with pytest.raises(CatalogError, match="has no p\\(z\\) of source 7"):
        photozhpc.plot_pdf(catalogue, [ids[0], 7])
    with pytest.raises(StoreError, match="holds none of these sources"):
        photozhpc.plot_cutouts(store, 7)
    with pytest.raises(ConfigError, match="1 to 48 sources fit"):
        photozhpc.plot_cutouts(store, [])

    # The command finds all of it done, and says the same.
    said = run("extract", "--survey", "roman-sim", "--mosaics", small_sky, "--store", store,
               "--size", 48, "--workers", 1)  # fmt: skip
    assert said.exit_code == 0
    assert said.stdout.startswith(store.text.partition(",")[0])
    assert run("export", catalogue, "--format", "fits", "--out", fits).stdout == f"{fits.text}\n"


@pytest.mark.drawn
def test_a_script_needs_no_main_guard(tmp_path) -> None:
    """Workers of the spawn method would run it again."""
    script = tmp_path / "script.py"
    script.write_text(
        "import photozhpc\nprint('begins')\n"
        "config = {'tile_size_pix': 128, 'density_scale': 2.0}\n"
        "open('sky.yaml', 'w').write(str(config))\n"
        "print(repr(photozhpc.simulate('sky', tiles=2, config='sky.yaml', workers=2)))\n"
    )
    command = [sys.executable, script.name]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "begins\n2 tiles written to sky\n"
