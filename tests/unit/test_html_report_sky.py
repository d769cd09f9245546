"""Maps of the sky and the pace of a run, against brute force."""

import io
import json
import re
from pathlib import Path
from types import SimpleNamespace

import matplotlib
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from astropy.wcs import WCS

from photozhpc.catalog.throughput import read_throughput
from photozhpc.evaluation.figure_style import DARK, PAPER
from photozhpc.extraction.extract import wcs_text
from photozhpc.html_report.sky_fields import MAX_FIELDS, map_sky
from photozhpc.html_report.sky_figures import (
    Coverage,
    area_arcmin2,
    coverage_of,
    density_map,
    plot_sky,
)
from photozhpc.html_report.tile_outlines import tile_outlines

NOTHING = Coverage({}, None)


def catalogue(folder: Path, ra_N, dec_N, tile_N=None) -> list[Path]:
    columns = {"ra": np.asarray(ra_N) % 360, "dec": np.asarray(dec_N)}
    if tile_N is not None:
        columns["tile_id"] = pa.array(tile_N)
    parts = []
    for index, rows in enumerate(np.array_split(np.arange(len(columns["ra"])), 3)):
        parts.append(folder / f"part-{index}.parquet")
        pq.write_table(pa.table(columns).take(rows), parts[-1])
    return parts


@pytest.mark.parametrize(("ra", "dec"), [(180, 0), (0, 40), (77, 89.9), (300, -89.5)])
def test_a_field_anywhere_is_mapped_whole_and_evenly(tmp_path, ra, dec):
    """Sources spread evenly over a cap of 2 degrees: each bin inside has the same density."""
    rng = np.random.default_rng(0)
    n, radius = 200_000, np.radians(2)
    up = rng.uniform(np.cos(radius), 1, n)
    turn = rng.uniform(0, 2 * np.pi, n)
    side = np.sqrt(1 - up**2)
    local = np.column_stack([side * np.cos(turn), side * np.sin(turn), up])
    a, d = np.radians(ra), np.radians(dec)
    pole = np.array([np.cos(d) * np.cos(a), np.cos(d) * np.sin(a), np.sin(d)])
    east = np.array([-np.sin(a), np.cos(a), 0])
    vector = local @ np.array([np.cross(pole, east), east, pole])
    (sky,) = map_sky(
        catalogue(
            tmp_path,
            np.degrees(np.arctan2(vector[:, 1], vector[:, 0])),
            np.degrees(np.arcsin(vector[:, 2])),
        )
    )
    assert sky.n == n
    area = 2 * np.pi * (1 - np.cos(radius)) * np.degrees(60) ** 2
    assert sky.occupied_arcmin2 == pytest.approx(area, rel=0.08)
    height, width = sky.counts_YX.shape
    middle = sky.counts_YX[height // 4 : -height // 4, width // 4 : -width // 4] / sky.bin_arcmin2
    assert middle.mean() == pytest.approx(n / area, rel=0.02)
    expected = n / area * sky.bin_arcmin2
    assert middle.std() * sky.bin_arcmin2 == pytest.approx(np.sqrt(expected), rel=0.1)


def test_right_ascension_increases_to_the_left(tmp_path):
    (sky,) = map_sky(catalogue(tmp_path, [10.0, 10.0, 11.0], [0.0, 1.0, 0.0]))
    x, y = sky.wcs.wcs_world2pix([10.0, 11.0, 10.0], [0.0, 0.0, 1.0], 0)
    assert x[1] < x[0]
    assert y[2] > y[0]


def test_fields_apart_have_a_map_each_and_many_share_the_sky(tmp_path):
    """Five fields, as CANDELS has; a source off every tile is in none."""
    rng = np.random.default_rng(1)
    centres = [(34.4, -5.2), (53.1, -27.8), (150.1, 2.3), (189.2, 62.2), (214.9, 52.8)]
    ra, dec, tile = [], [], []
    for at, (a, d) in enumerate(centres):
        for half in "ab":
            n = 100 * (at + 1)
            ra.append(a + rng.uniform(0, 0.1, n) + 0.1 * (half == "b"))
            dec.append(d + rng.uniform(0, 0.1, n))
            tile += [f"{at}{half}"] * n
    ra.append([0.0])
    dec.append([0.0])
    tile.append("off-tile")
    maps = map_sky(catalogue(tmp_path, np.concatenate(ra), np.concatenate(dec), tile))
    assert [sky.n for sky in maps] == [1000, 800, 600, 400, 200]
    assert maps[0].tile_ids == {"4a", "4b"}
    many = MAX_FIELDS + 1
    maps = map_sky(
        catalogue(tmp_path, np.arange(many) * 10, np.zeros(many), list(map(str, range(many))))
    )
    assert [sky.is_all_sky for sky in maps] == [True]
    assert maps[0].n == many
    for theme in (PAPER, DARK):
        plot_sky(maps[0], NOTHING, np.empty((0, 2)), theme).canvas.draw()


def test_the_whole_sky_has_its_area(tmp_path):
    rng = np.random.default_rng(2)
    n = 400_000
    dec = np.degrees(np.arcsin(rng.uniform(-1, 1, n)))
    (sky,) = map_sky(catalogue(tmp_path, rng.uniform(0, 360, n), dec))
    assert sky.is_all_sky
    assert sky.n == n
    assert sky.occupied_arcmin2 / 3600 == pytest.approx(41253, rel=0.02)


def test_what_tiles_cover(small_store, tmp_path):
    outlines = tile_outlines(small_store, small_store.tiles())
    side = 700 * 0.055 / 60
    assert set(outlines) == set(small_store.tiles())
    for points in outlines.values():
        span = np.ptp(points, axis=0) * [np.cos(np.radians(points[:, 1].mean())), 1] * 60
        np.testing.assert_allclose(span, side, rtol=1e-3)
    sources = [small_store.read_sources(key) for key in small_store.shards()]
    ra_N, dec_N = (
        np.concatenate([getattr(s, name) for s in sources]) for name in ("ra_N", "dec_N")
    )
    tiles = np.concatenate(
        [[k.tile_id] * len(s) for k, s in zip(small_store.shards(), sources, strict=True)]
    )
    parts = catalogue(tmp_path, ra_N, dec_N, tiles)
    (sky,) = map_sky(parts, lambda _: outlines)
    coverage = coverage_of(sky, outlines)
    assert sky.n == len(ra_N)
    assert area_arcmin2(sky, coverage) == pytest.approx(len(outlines) * side**2, rel=0.005)
    density = density_map(sky, coverage)
    whole = coverage.fraction_YX == 1
    np.testing.assert_allclose(density[whole], sky.counts_YX[whole] / sky.bin_arcmin2)
    fewer = coverage_of(sky, dict(list(outlines.items())[:1]))
    assert fewer.fraction_YX is None
    # One source has the area of its tile; sources that are elsewhere have none of the tiles.
    (sky,) = map_sky(catalogue(tmp_path, ra_N[:1], dec_N[:1], tiles[:1]), lambda _: outlines)
    assert area_arcmin2(sky, coverage_of(sky, outlines)) == pytest.approx(side**2, rel=0.005)
    (sky,) = map_sky(catalogue(tmp_path, ra_N + 20, dec_N, tiles), lambda _: outlines)
    assert coverage_of(sky, outlines).fraction_YX is None
    assert sky.n == len(ra_N)


def test_a_tile_of_fits_has_its_own_edge_not_that_of_its_sources():
    wcs = WCS(naxis=2)
    wcs.wcs.ctype, wcs.wcs.crval = ["RA---TAN", "DEC--TAN"], [150.0, 2.0]
    wcs.wcs.cdelt, wcs.wcs.crpix = [-1e-4, 1e-4], [1.0, 1.0]
    store = SimpleNamespace(
        tiles=lambda: {"t": 0},
        tile_attributes=lambda _: {
            "wcs": wcs_text(wcs),
            "shape_HW": [100, 300],
        },
    )
    points = tile_outlines(store, ["t"])["t"]
    np.testing.assert_allclose(
        np.ptp(points, axis=0) * [np.cos(np.radians(2)), 1], [0.03, 0.01], 1e-3
    )


@pytest.mark.parametrize(("ra", "dec"), [(np.nan, 1.0), (1.0, np.nan), (1.0, 95.0)])
def test_no_position_is_no_map(tmp_path, ra, dec):
    assert map_sky(catalogue(tmp_path, [ra] * 4, [dec] * 4)) == []


@pytest.mark.parametrize(
    ("dec", "side_deg"), [(10, 0.003), (10, 0.03), (-60, 1), (85, 1), (89.99, 1)]
)
def test_both_axes_have_numbers_at_every_scale(tmp_path, dec, side_deg):
    rng = np.random.default_rng(0)
    ra_N = 20 + rng.uniform(-0.5, 0.5, 99) * side_deg / np.cos(np.radians(min(dec, 89.5)))
    dec_N = np.clip(dec + rng.uniform(-0.5, 0.5, 99) * side_deg, -90, 90)
    (sky,) = map_sky(catalogue(tmp_path, ra_N, dec_N))
    figure = plot_sky(sky, NOTHING, np.column_stack([ra_N, dec_N]), PAPER)
    svg = io.BytesIO()
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        figure.savefig(svg, format="svg")
    numbers = re.findall(r">(?:[-−]?[\d.]+)°<", svg.getvalue().decode())
    assert len(numbers) >= 3
    assert len(set(numbers)) == len(numbers)


def test_the_pace_of_a_run_with_a_pause(tmp_path):
    """Two workers, 10 s each at 100 sources/s; a day later one part of 500 in 10 s."""
    (tmp_path / "notes").mkdir()

    def note(worker: str, part: int, at: float, seconds: float, rows: int) -> None:
        line = {"part": part, "at": at, "seconds": seconds, "rows": rows, "worker": worker}
        line |= {"flagged": 0, "without_photoz": 0, "bytes": 1, "sha256": ""}
        with open(tmp_path / "notes" / f"{worker}.jsonl", "a") as stream:
            stream.write(json.dumps(line) + "\n")

    t = 1.7e9
    note("n1-1", 0, t + 10, 10, 1000)
    note("n2-7", 1, t + 10, 10, 1000)
    note("n1-2", 2, t + 86400 + 10, 10, 500)
    note("n1-2", 3, t + 86400 + 10, 0, 77)  # its worker died before it could note it
    events = [
        {"at": t, "event": "begun", "host": "n1"},
        {"at": t + 5, "event": "worker lost", "host": "n1"},
        {"at": t + 11, "event": "stopped", "host": "n1"},
        {"at": t + 86400, "event": "begun", "host": "n1"},
        {"at": "x", "event": "begun"},
    ]
    (tmp_path / "events.jsonl").write_text("\n".join(map(json.dumps, events)) + "\n{cut")
    pace = read_throughput(tmp_path, 2577)
    assert pace.seconds == pytest.approx(20)
    assert pace.sources_per_s[10] == pytest.approx(200)
    assert pace.sources_per_s[70] == pytest.approx(50)
    assert pace.done_share[-1] == pytest.approx(2500 / 2577)
    assert pace.n_untimed == 77
    assert (pace.n_starts, pace.n_workers, pace.hosts) == (2, 3, ["n1", "n2"])
    assert [event for _, event in pace.marks] == ["worker lost", "stopped", "begun again"]
    np.testing.assert_allclose([at for at, _ in pace.marks], [5, 10, 10], atol=0.01)
    assert read_throughput(tmp_path / "nothing", 5) is None
