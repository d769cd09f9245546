"""simulate_sky: tiles of a simulated Roman sky, in parallel; the same seed gives the same sky."""

import importlib.metadata
import json
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from photozhpc.config import to_mapping
from photozhpc.errors import ConfigError, RunError
from photozhpc.files.disk import (
    disk_error,
    is_full,
    read_json,
    remove_stale_partials,
    write_durably,
)
from photozhpc.sky.catalogue import (
    confuse_redshifts,
    label_probability,
    measured_redshifts,
    write_catalogue,
    write_truth,
)
from photozhpc.sky.defects import add_defects, draw_defects, strongest_defect
from photozhpc.sky.l3_file import tile_wcs, write_mosaic
from photozhpc.sky.observe import (
    Plane,
    bad_pixels,
    coverage_map,
    exposure_share,
    observe,
    sky_sigma_njy,
)
from photozhpc.sky.population import Population, SkyPhysics
from photozhpc.sky.psf import blur_field
from photozhpc.sky.render import Renderer
from photozhpc.sky.sed import galsim_band_name
from photozhpc.sky.sky_config import Ingredients, SkyConfig, load_sky_config
from photozhpc.sky.spectra import Floats
from photozhpc.survey import Survey, ab_magnitude
from photozhpc.workers.pool import run_jobs

MANIFEST = "sky.json"
PHYSICS_VERSION = 2  # incremented when the same configuration and seed give another sky
MARGIN_PIX = 40  # sources are also drawn this far outside a tile, so that light spills in
COLUMNS = 100  # tiles per row of a seed's grid
MAX_TILES = 1 << 16
CATALOGUED_STAMP, FAINT_STAMP = 96, 64
# Random numbers of their own, so that switching an ingredient off leaves all else as it was.
STREAMS = ("structure", "psf", "coverage", "defects", "labels")
DEFECT_RADIUS_ARCSEC = 0.5


def simulate_sky(
    survey: Survey,
    out: Path,
    tiles: int,
    seed: int,
    config: SkyConfig | None = None,
    workers: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[str]:
    """Write `tiles` tiles of a simulated sky into `out`; tiles that are there are kept.

    A tile is one `{tile}_{band}_coadd.asdf` per band, `{tile}_cat.parquet` (what a survey knows)
    and `{tile}_truth.parquet` (what was drawn). It depends on the seed, its number and the
    configuration, not on the number of workers.

    Args:
        survey: bands (Roman filters), pixel scale and extinction.
        config: None for the default sky.
        workers: processes; None: one per core.
        progress: called with (tiles done, tiles).

    Returns:
        The tile ids, in order.

    Raises:
        ConfigError: a band without a Roman bandpass or a depth.
        RunError: the folder holds another sky, the disk is full, or a worker was lost.
    """
    config = load_sky_config() if config is None else config
    if not 1 <= tiles <= MAX_TILES:
        raise ConfigError(f"tiles must lie between 1 and {MAX_TILES}, got {tiles}")
    if not 0 <= seed < 1 << 31:
        raise ConfigError(f"seed must lie between 0 and {(1 << 31) - 1}, got {seed}")
    for name in (*survey.band_names, config.reference_band):
        galsim_band_name(name)
    sky_sigma_njy(survey.band_names, config, np.ones(len(survey.bands)))
    out = Path(out)
    _write_manifest(out, survey, config, seed, tiles)
    remove_stale_partials(out)
    ids = [tile_id(seed, index) for index in range(tiles)]
    missing = [i for i in range(tiles) if not (out / f"{ids[i]}_cat.parquet").exists()]
    done = tiles - len(missing)
    progress(done, tiles)

    def finished(_index: int, _result: None) -> None:
        nonlocal done
        done += 1
        progress(done, tiles)

    jobs = [(survey, out, seed, index, config) for index in missing]
    run_jobs(_simulate_tile, jobs, workers, f"simulating tiles into {out}", finished)
    return ids


def tile_id(seed: int, index: int) -> str:
    return f"sim{seed:06d}t{index:04d}"


def tile_centre_deg(seed: int, index: int, tile_arcsec: float) -> tuple[float, float]:
    """Return a tile's sky position, on a grid that starts at the seed's own corner of the sky.

    A seed's tiles do not overlap: the grid's step is a tile and 5%. The corners follow the golden
    ratio, which keeps small seeds far apart.
    """
    ra_corner = 360.0 * ((seed * 0.6180339887498949 + 0.35) % 1.0)
    dec_corner = -55.0 + 90.0 * ((seed * 0.7548776662466927 + 0.5) % 1.0)
    row, column = divmod(index, COLUMNS)
    step = 1.05 * tile_arcsec / 3600.0
    dec = dec_corner + row * step * (1.0 if dec_corner < 0 else -1.0)
    widest = np.cos(np.radians(min(abs(dec) + step, 89.0)))
    return float((ra_corner + column * step / widest) % 360.0), float(dec)


@lru_cache(maxsize=2)
def _renderer(bands: tuple[str, ...], pixel_scale_arcsec: float) -> Renderer:
    return Renderer(bands, pixel_scale_arcsec)


_PHYSICS: dict[str, SkyPhysics] = {}


def _physics(bands: tuple[str, ...], config: SkyConfig) -> SkyPhysics:
    """Return the SkyPhysics of a configuration, made once per process."""
    key = json.dumps([bands, to_mapping(config)])
    if key not in _PHYSICS:
        _PHYSICS.clear()
        _PHYSICS[key] = SkyPhysics(bands, config)
    return _PHYSICS[key]


def _simulate_tile(survey: Survey, out: Path, seed: int, index: int, config: SkyConfig) -> None:
    """Draw, observe and write one tile; the catalogue comes last and marks it as finished."""
    bands = survey.band_names
    scale = survey.pixel_scale_arcsec
    size = config.tile_size_pix
    rng = np.random.default_rng(np.random.SeedSequence([seed, index]))
    ingredients = config.ingredients
    streams = {
        name: np.random.default_rng([seed, index, number])
        for number, name in enumerate(STREAMS, start=1)
    }
    renderer = _renderer(bands, scale)
    sigma_C = sky_sigma_njy(bands, config, renderer.noise_area_C)

    side_arcmin = (size + 2 * MARGIN_PIX) * scale / 60.0
    physics = _physics(bands, config)
    sources = physics.draw(rng, side_arcmin**2)
    sources = physics.with_structure(streams["structure"], sources)
    y_N, x_N = _positions(rng, len(sources), size, config, scale)
    ebv_N = _extinction(rng, y_N, x_N, size, config)
    magnitude_N = ab_magnitude(sources.reference_njy_N)
    inside_N = (np.abs(y_N - (size - 1) / 2) < size / 2) & (np.abs(x_N - (size - 1) / 2) < size / 2)
    listed_N = np.flatnonzero(inside_N & (magnitude_N < config.catalogue_limit_ab))
    if len(listed_N) >= MAX_TILES:
        raise ConfigError(
            f"a tile has {len(listed_N)} sources, at most {MAX_TILES - 1} fit; lower density_scale"
        )

    image_CHW = np.zeros((len(bands), size, size), np.float32)
    smallest_N = np.where(magnitude_N < config.catalogue_limit_ab, CATALOGUED_STAMP, FAINT_STAMP)
    dimmed = _dimmed(sources, survey, ebv_N)
    blur_N3 = None
    if ingredients.psf_blur_arcsec:
        blur_N3 = blur_field(streams["psf"], y_N, x_N, size, ingredients.psf_blur_arcsec)
    renderer.draw(image_CHW, dimmed, y_N, x_N, sigma_C, smallest_N, blur_N3)

    centre = tile_centre_deg(seed, index, size * scale)
    wcs = tile_wcs(*centre, size, scale)
    coverage_HW = coverage_map(rng, size, config.coverage_scatter)
    coverages = _coverages(streams["coverage"], coverage_HW, len(bands), scale, ingredients)
    area_arcmin2 = (size * scale / 60.0) ** 2
    defects = {
        band: draw_defects(streams["defects"], size, area_arcmin2, ingredients) for band in bands
    }
    name = tile_id(seed, index)
    try:
        for c, band in enumerate(bands):
            bad_HW = bad_pixels(rng, size, config)
            observed = observe(
                rng, image_CHW[c], band, float(sigma_C[c]), next(coverages), bad_HW, config
            )
            add_defects(observed.data_HW, observed.err_HW, defects[band])
            path = out / f"{name}_{band.lower()}_coadd.asdf"
            write_mosaic(path, observed, band, wcs, centre, scale, config.exposure_time_s)
        listed = sources.take(listed_N)
        y_K, x_K, ebv_K = y_N[listed_N], x_N[listed_N], ebv_N[listed_N]
        source_id_K = (np.int64(seed) << 32) + (np.int64(index) << 16) + np.arange(len(listed))
        ra_K, dec_K = (np.asarray(v, float).reshape(-1) for v in wcs(x_K, y_K))
        probability_K = label_probability(
            listed, bands, config.label_fraction, ingredients.label_slope_per_mag
        )
        z_spec_K = measured_redshifts(rng, listed, probability_K)
        z_spec_K, wrong_K = confuse_redshifts(
            streams["labels"], listed, z_spec_K, ingredients.wrong_redshifts
        )
        further: dict[str, NDArray] = {
            "clumps": listed.structure.clumps.count_N.astype(np.int8),
            "spiral_arms": listed.structure.arms_N.astype(np.int8),
            "z_spec_is_wrong": wrong_K,
        }
        for band in bands:
            snr_K = strongest_defect(defects[band], y_K, x_K, DEFECT_RADIUS_ARCSEC / scale)
            further[f"defect_snr_{band.lower()}"] = snr_K.astype(np.float32)
        write_truth(
            out / f"{name}_truth.parquet", source_id_K, ra_K, dec_K, ebv_K, listed, bands, further
        )
        scatter_K = _astrometric_scatter_pix(dimmed.take(listed_N), sigma_C, renderer)
        shift_2K = rng.standard_normal((2, len(listed))) * scatter_K
        ra_K, dec_K = (
            np.asarray(v, float).reshape(-1) for v in wcs(x_K + shift_2K[0], y_K + shift_2K[1])
        )
        write_catalogue(out / f"{name}_cat.parquet", source_id_K, ra_K, dec_K, ebv_K, z_spec_K)
    except OSError as error:
        if is_full(error):
            raise disk_error(out / name, error) from error
        raise


def _coverages(
    rng: np.random.Generator,
    coverage_HW: Plane,
    n_bands: int,
    pixel_scale_arcsec: float,
    config: Ingredients,
) -> Iterator[Plane]:
    """Yield each band's relative exposure: of the tile, of the band, and of every pixel."""
    tile_mag = rng.normal(0.0, config.depth_scatter_mag)
    for _ in range(n_bands):
        deeper_mag = tile_mag + rng.normal(0.0, 0.5 * config.depth_scatter_mag)
        band_HW = coverage_HW
        if config.exposures:
            share_HW = exposure_share(rng, len(coverage_HW), pixel_scale_arcsec, config.exposures)
            band_HW = band_HW * share_HW
        if config.depth_scatter_mag:  # noise falls with the square root of the exposure
            band_HW = band_HW * np.float32(10.0 ** (0.8 * deeper_mag))
        yield band_HW


def _positions(
    rng: np.random.Generator, n: int, size: int, config: SkyConfig, scale: float
) -> tuple[Floats, Floats]:
    """Draw pixel positions: uniform, except for a share of sources close to another one."""
    low, high = -0.5 - MARGIN_PIX, size - 0.5 + MARGIN_PIX
    y_N, x_N = rng.uniform(low, high, (2, n))
    paired_N = rng.random(n) < config.pair_fraction
    if n > 1:
        host_N = rng.integers(0, n, n)
        radius_N = config.pair_radius_arcsec / scale * np.sqrt(rng.random(n))
        angle_N = rng.random(n) * 2.0 * np.pi
        paired_N &= ~paired_N[host_N]
        y_N = np.where(paired_N, y_N[host_N] + radius_N * np.sin(angle_N), y_N)
        x_N = np.where(paired_N, x_N[host_N] + radius_N * np.cos(angle_N), x_N)
    return y_N, x_N


def _extinction(
    rng: np.random.Generator, y_N: Floats, x_N: Floats, size: int, config: SkyConfig
) -> Floats:
    """Draw E(B-V) at the sources: log-normal from tile to tile, a 10% gradient within one."""
    tile_ebv = config.ebv_median * 10.0 ** rng.normal(0.0, config.ebv_sigma_dex)
    angle = rng.random() * 2.0 * np.pi
    along_N = ((x_N / size - 0.5) * np.cos(angle) + (y_N / size - 0.5) * np.sin(angle)) * 0.2
    return tile_ebv * (1.0 + np.clip(along_N, -0.3, 0.3))


def _dimmed(sources: Population, survey: Survey, ebv_N: Floats) -> Population:
    """Return the sources behind the Galaxy's dust, A = R E(B-V) with the survey's R."""
    r_C = np.array([band.extinction_r for band in survey.bands])
    factor_NC = 10.0 ** (-0.4 * r_C * ebv_N[:, None])
    dimmed = sources.take(np.arange(len(sources)))
    dimmed.bulge_njy_NC[...] *= factor_NC
    dimmed.disk_njy_NC[...] *= factor_NC
    return dimmed


def _astrometric_scatter_pix(sources: Population, sigma_C: Floats, renderer: Renderer) -> Floats:
    """Return centroid errors per axis, pixels: 0.6 x size / (S/N) in the best band, 0.02 to 1."""
    radius_N = sources.half_light_arcsec_N / renderer.pixel_scale_arcsec
    area_NC = renderer.noise_area_C + 4.0 * np.pi * radius_N[:, None] ** 2
    snr_N = (sources.flux_njy_NC / (sigma_C * np.sqrt(area_NC))).max(axis=1)
    extent_N = np.sqrt(1.2**2 + radius_N**2)
    return np.clip(0.6 * extent_N / np.maximum(snr_N, 1e-3), 0.02, 1.0)


def _write_manifest(out: Path, survey: Survey, config: SkyConfig, seed: int, tiles: int) -> None:
    """Record the sky in `out`/sky.json; refuse a folder that holds another one."""
    path = out / MANIFEST
    sky = {
        "physics_version": PHYSICS_VERSION,
        "extinction_r": {band.name: band.extinction_r for band in survey.bands},
        "pixel_scale_arcsec": survey.pixel_scale_arcsec,
        "config": to_mapping(config),
    }
    seeds: dict[str, int] = {}
    try:
        out.mkdir(parents=True, exist_ok=True)
        if path.exists():
            recorded = read_json(path)
            if recorded.get("sky") != sky:
                raise RunError(
                    f"{out}: holds a sky of another configuration or version; choose an empty "
                    "folder with --out"
                )
            seeds = recorded.get("seeds", {})
    except OSError as error:
        raise disk_error(out, error) from error
    except ValueError:
        raise RunError(f"{path}: not valid JSON; remove it or choose another --out") from None
    seeds[str(seed)] = max(tiles, seeds.get(str(seed), 0))
    versions = {}
    for name in ("photozhpc", "galsim", "numpy", "roman_datamodels", "asdf"):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "unknown"
    text = json.dumps({"sky": sky, "seeds": seeds, "versions": versions}, indent=1)
    write_durably(path, text.encode())
