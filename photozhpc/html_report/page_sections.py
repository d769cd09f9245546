"""The sections of the page: numbers, tables and figures, ready for the template."""

import datetime
import platform
import socket
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

import matplotlib
import numpy as np
from numpy.typing import NDArray

from photozhpc import __version__
from photozhpc.catalog.doubts import doubts
from photozhpc.catalog.notes import warnings_of
from photozhpc.catalog.photoz_catalog import PhotozFlag
from photozhpc.catalog.throughput import read_throughput
from photozhpc.errors import StoreError
from photozhpc.evaluation.catalog_columns import floats
from photozhpc.evaluation.evaluate import Estimate
from photozhpc.figures.composites import channels
from photozhpc.html_report import page_figures as draw
from photozhpc.html_report.catalog_scan import (
    COLOUR_SN,
    DETECTION_SN,
    N_GALLERY,
    N_SAMPLE,
    Z_WIDTH,
    CatalogScan,
    Density,
    rebin,
)
from photozhpc.html_report.cutout_gallery import Cutout, make_gallery
from photozhpc.html_report.page_accuracy import Accuracy
from photozhpc.html_report.page_source import PageSource
from photozhpc.html_report.plot import Plot, with_minus
from photozhpc.html_report.sky_fields import SkyMap, map_sky
from photozhpc.html_report.sky_figures import (
    Coverage,
    area_arcmin2,
    coverage_of,
    is_dense,
    plot_sky,
)
from photozhpc.html_report.tile_outlines import MAX_OUTLINES, tile_outlines

_DEG2 = 3600.0  # arcmin^2
MIN_PARTS = 3  # of a plot of the pace
_MEANING = {
    PhotozFlag.OFF_TILE: "on no mosaic of the survey",
    PhotozFlag.MISSING_BAND: "a band holds no data where the network looks",
    PhotozFlag.BAD_PIXELS: "no data in the middle of the image, or in 5 % of it, in some band",
    PhotozFlag.NO_PHOTOZ: "too little data: no redshift was estimated",
    PhotozFlag.SHARP_DEFECT: "a cosmic ray, a hot pixel or a dead band in the image",
    PhotozFlag.OTHER_NOISE: "the noise of a band is lower or higher than in all training",
    PhotozFlag.UNUSUAL: "photoz_ood is above 1, as for 1 % of the training images",
    PhotozFlag.IMPLAUSIBLE: "photoz is negative, or outside its own 99 % interval",
}


@dataclass(frozen=True)
class Sky:
    """Where the sources lie.

    Attributes:
        area_arcmin2: area of all fields together; None without sources.
        area_is_of_tiles: whether it is that of the tiles, or else of the map's bins with a source.
        plots: one per field.
        rows: the table of fields.
    """

    area_arcmin2: float | None = None
    area_is_of_tiles: bool = False
    plots: list[Plot] = field(default_factory=list)
    rows: list[list[str]] = field(default_factory=list)


def sky(source: PageSource, scan: CatalogScan) -> Sky:
    """Map the fields of a catalogue."""
    outlines: dict[str, NDArray[np.float64]] = {}

    def outlines_of(tile_ids: Collection[str]) -> dict[str, NDArray[np.float64]]:
        if source.store is not None and len(tile_ids) <= MAX_OUTLINES:
            outlines.update(tile_outlines(source.store, tile_ids))
        return outlines

    maps = map_sky(source.parts, outlines_of)
    if not maps:
        return Sky()
    plots, rows, areas, of_tiles = [], [], [], True
    for number, sky_map in enumerate(maps, 1):
        coverage = coverage_of(sky_map, outlines)
        area = area_arcmin2(sky_map, coverage)
        of_tiles &= coverage.fraction_YX is not None
        areas.append(area)
        whole_sky = sky_map.is_all_sky
        name = "The whole sky" if whole_sky else f"Field {number}" if len(maps) > 1 else "Sky"
        ra, dec = sky_map.wcs.wcs.crval
        centre = "–" if whole_sky else with_minus(f"{ra:.4f}, {dec:+.4f}")
        n_tiles = "–" if whole_sky or sky_map.tile_ids == {""} else f"{len(sky_map.tile_ids):,}"
        per_arcmin2 = f"{sky_map.n / area:.3g}"
        rows.append([name, centre, n_tiles, f"{sky_map.n:,}", area_text(area), per_arcmin2])
        plots.append(_sky_plot(sky_map, coverage, scan, name, area))
    return Sky(sum(areas), of_tiles, plots, rows)


def _sky_plot(
    sky_map: SkyMap, coverage: Coverage, scan: CatalogScan, name: str, area: float
) -> Plot:
    points_N2 = np.empty((0, 2))
    if scan.n_rows <= N_SAMPLE and scan.sample is not None and not sky_map.is_all_sky:
        points_N2 = np.column_stack([scan.sample[axis].to_numpy() for axis in ("ra", "dec")])
    side = 60 * np.sqrt(sky_map.bin_arcmin2)
    bins = f"{side:.0f} arcsec" if side < 120 else f"{side / 60:.3g} arcmin"
    projection = "Mollweide's" if sky_map.is_all_sky else "Lambert's azimuthal"
    covered = (
        "counts are over the part of a bin that the tiles cover"
        if coverage.fraction_YX is not None
        else "the outlines of the tiles are unknown; bins without a source are blank"
    )
    caption = f"Equal-area bins of {bins} ({projection} projection), east to the left; {covered}."
    title = "Density of sources"
    if len(points_N2) and not is_dense(sky_map):
        title, caption = "Positions of the sources", "East to the left."
    if len(coverage.outlines):
        caption += " Lines: the tiles."
    if len(points_N2):
        caption += " Dots: the sources."
    filled = sky_map.counts_YX[sky_map.counts_YX > 0] / sky_map.bin_arcmin2
    ra, dec = sky_map.wcs.wcs.crval
    where = "" if sky_map.is_all_sky else f" about RA {ra:.3f}°, Dec {dec:+.3f}°"
    alt = (
        f"Map of {sky_map.n:,} sources{where} on {area_text(area)}: on average "
        f"{sky_map.n / area:.3g} per square arcminute, at most {filled.max(initial=0):.3g} in one "
        f"bin."
    )
    if name != "Sky":
        title += f", {name[0].lower()}{name[1:]}"
    return Plot(
        lambda theme: plot_sky(sky_map, coverage, points_N2, theme), title, caption, alt, True
    )


def area_text(area: float) -> str:
    """Return an area in deg² or arcmin², whichever suits its size."""
    return f"{area / _DEG2:,.4g} deg²" if area >= _DEG2 / 10 else f"{area:.4g} arcmin²"


def redshifts(scan: CatalogScan, accuracy: Accuracy) -> list[Plot]:
    """Return the n(z), and the colour against redshift."""
    if not scan.n_photoz:
        return []
    evaluation = accuracy.evaluation
    z_ref_N = evaluation.matched.z_ref_N if evaluation else np.empty(0)
    z_kind = evaluation.z_kind if evaluation else ""
    edges, merge = draw.redshift_bins(scan, z_ref_N)
    counts = rebin(scan.z_Z, merge)[: len(edges) - 1]
    peak = int(np.argmax(counts))
    caption = f"Grey: photoz in bins of {merge * Z_WIDTH:g}."
    if scan.n_stacked:
        chosen = (
            "all" if scan.n_stacked == scan.n_intervals else f"{scan.n_stacked:,} random of the"
        )
        caption += (
            f" Blue: the sum of the PDFs of {chosen} {scan.n_intervals:,} sources with intervals; "
            f"a PDF goes through the nine quantiles, linear in the probit of the level. The band "
            f"is the scatter (1σ) of the counts if each redshift were drawn independently from its "
            f"own PDF, without cosmic variance and errors of the model."
        )
    else:
        caption += " The catalogue has no intervals, so there are no PDFs to stack."
    if len(z_ref_N):
        caption += f" Orange, dashed: the {z_kind} redshifts of the sources that have one."
    alt = (
        f"Redshift distribution of {scan.n_photoz:,} sources: mean {scan.z_sum / scan.n_photoz:.2f}"
        f", most between z = {edges[peak]:.2f} and {edges[peak + 1]:.2f} "
        f"({int(counts[peak]):,} sources)."
    )
    if scan.stack_Z.any():
        centres = (scan.z_edges[1:] + scan.z_edges[:-1]) / 2
        alt += f" The mean of the stacked PDFs is {np.average(centres, weights=scan.stack_Z):.2f}."
    if len(z_ref_N):
        alt += f" The mean of the {len(z_ref_N):,} {z_kind} redshifts is {np.mean(z_ref_N):.2f}."
    if not_shown := scan.n_photoz - int(counts.sum()):
        caption += f" {not_shown:,} redshifts lie beyond the figure."
    plots = [Plot(lambda theme: draw.plot_nz(scan, z_ref_N, z_kind, theme), "n(z)", caption, alt)]
    if scan.colour_z is not None and scan.colour_z.counts_XY.any():
        plots.append(_colour_plot(scan, scan.colour_z, "photometric redshift", "photoz"))
    return plots


def photometry(scan: CatalogScan, where: Sky) -> dict[str, Any]:
    """Return figures and the table of bands."""
    if not scan.bands:
        return {"plots": [], "rows": []}
    plots, rows = [], []
    for band in scan.bands:
        peak = "–"
        if band.n_detected:
            edges = band.mag_edges[:: draw.COUNT_BINS]
            at = int(np.argmax(rebin(band.mag_M, draw.COUNT_BINS)))
            peak = f"{edges[at]:.1f} to {edges[at + 1]:.1f}"
        rows.append(
            [
                band.columns.label,
                f"{band.n_detected:,}",
                f"{band.depth_mag:.2f}" if np.isfinite(band.depth_mag) else "–",
                peak,
                "total"
                if band.columns.radius_arcsec is None
                else f"{band.columns.radius_arcsec:g}",
                "Kron" if band.columns.magnitude_text == "Kron" else "aperture",
            ]
        )
    if any(band.n_detected for band in scan.bands):
        depths = "; ".join(f"{row[0]}: {row[1]} detected, 5σ depth {row[2]}" for row in rows)
        kinds = " and ".join(sorted({row[5] for row in rows}))
        per = "" if where.area_is_of_tiles else " that hold a source"
        plots.append(
            Plot(
                lambda theme: draw.plot_counts(scan, where.area_arcmin2, theme),
                "Number counts",
                f"Sources with an aperture flux of {DETECTION_SN:g} times its error or more, per "
                f"magnitude ({kinds}), over the area of the "
                f"{'tiles' if where.area_is_of_tiles else 'bins of the map'}{per}; Poisson errors. "
                f"Ticks at the bottom: the 5σ depth, five times the median error of the aperture "
                f"flux. Not corrected for incompleteness, extinction or flux outside the aperture.",
                f"Number counts against AB magnitude. {depths}.",
            )
        )
    if scan.colour_mag is not None and scan.colour_mag.counts_XY.any():
        plots.append(_colour_plot(scan, scan.colour_mag, "magnitude", "mag"))
    return {"plots": plots, "rows": rows}


def _colour_plot(scan: CatalogScan, density: Density, against: str, kind: str) -> Plot:
    first, last = scan.bands[0].columns, scan.bands[-1].columns
    per_colour = density.counts_XY.sum(axis=0)
    n, share = int(per_colour.sum()), np.cumsum(per_colour) / per_colour.sum()
    middles = (density.y_edges[1:] + density.y_edges[:-1]) / 2
    low, middle, high = (middles[int(np.searchsorted(share, q))] for q in (0.16, 0.5, 0.84))
    caption = (
        f"From the {last.flux_text}, of the sources with "
        f"{COLOUR_SN:g} times the error or more in both bands; as observed, without dereddening or "
        f"PSF matching."
    )
    if kind == "mag":
        caption += f" Magnitude: {last.magnitude_text}."
    return Plot(
        lambda theme: draw.plot_colour(scan, density, kind, theme),
        f"Colour and {against}",
        caption,
        f"Colour {first.label} − {last.label} of {n:,} sources against {against}: median "
        f"{middle:.2f}, 16 % below {low:.2f}, 16 % above {high:.2f}.",
    )


def flags(scan: CatalogScan) -> list[list[str]]:
    """Return the rows of the table of flags: name, value, meaning, sources, percentage."""
    total = max(scan.n_rows, 1)
    rows = [("none", "0", "no problem", scan.flag_values.get(0, 0))]
    for flag in PhotozFlag:
        meaning = _MEANING.get(flag, "see the guide")
        rows.append((str(flag.name), str(flag.value), meaning, _with_bits(scan, flag.value)))
    if unknown := _with_bits(scan, ~sum(PhotozFlag)):
        rows.append(("unknown", "", "bits that have no meaning in this version", unknown))
    return [[*texts, f"{n:,}", f"{100 * n / total:.2f}"] for *texts, n in rows]


def _with_bits(scan: CatalogScan, bits: int) -> int:
    """Return the number of rows that have any of the bits set."""
    return sum(count for value, count in scan.flag_values.items() if value & bits)


def galleries(source: PageSource, scan: CatalogScan) -> dict[str, Any]:
    """Return galleries of cutouts, or the reason why there are none."""
    if source.store is None:
        return {"why": source.why_no_store, "kinds": []}
    if scan.sample is None or "tile_id" not in scan.sample.column_names:
        return {"why": "The catalogue does not say on which tile a source is.", "kinds": []}
    bands = [band.columns for band in scan.bands]
    kinds: list[tuple[str, str, list[Cutout]]] = []
    try:
        for title, text, table in (
            ("At random", "Of all sources, flagged or not.", scan.sample),
            ("At the highest redshift", "Of the sources without a flag.", scan.high_z),
            (
                "Most out of distribution",
                "Largest photoz_ood: 1 is as far from the training images as 1 % of those are.",
                scan.far_out,
            ),
        ):
            if table is not None:
                kinds.append((title, text, make_gallery(source.store, table, bands, N_GALLERY)))
    except StoreError as error:
        return {"why": str(error), "kinds": []}
    survey = source.store.survey
    size = source.store.cutout_size
    about = (
        f"{size} × {size} pixels, {size * survey.pixel_scale_arcsec:.3g} arcsec per side, on the "
        f"tile's grid; {channels(survey.band_names)[0]}; asinh scale (Lupton et al. 2004), one per "
        f"gallery, in units of the noise, local sky subtracted; grey: no data. z is photoz with "
        f"its 68 % interval, OOD is photoz_ood."
    )
    return {"why": "", "kinds": kinds, "about": about}


def pace(source: PageSource) -> dict[str, Any]:
    """Return the pace of the run, and what happened in it."""
    n_rows = source.status.get("sources", 0)
    rate = None if source.run is None else read_throughput(source.run, n_rows)
    if rate is None:
        why = "There is no run beside the catalogue, so its pace is unknown."
        return {"why": why, "plots": [], "rows": [], "failed": []}
    busiest = float(rate.sources_per_s.max())
    plot = Plot(
        lambda theme: draw.plot_throughput(rate, theme),
        "Sources per second",
        "From the notes of the workers: a part's sources are spread evenly over the time it took. "
        "Pauses of more than a minute are cut out. Dashed: the share of sources done.",
        f"{rate.n_sources:,} sources in {_duration(rate.seconds)} of work, "
        f"{rate.mean_rate:,.0f} per second on average and {busiest:,.0f} at most, by "
        f"{rate.n_workers} workers.",
        True,
    )
    lost = sum(event == "worker lost" for _, event in rate.marks)
    rows = [
        ["sources", f"{rate.n_sources:,} of {n_rows:,}"],
        ["parts", f"{rate.n_parts:,} of {source.status.get('parts', 0):,}"],
        ["time at work", _duration(rate.seconds)],
        ["rate", f"{rate.mean_rate:,.0f} sources/s on average, {busiest:,.0f} at most"],
        ["worker processes", f"{rate.n_workers:,}"],
        ["workers lost and replaced", f"{lost:,}"],
        ["starts", f"{rate.n_starts:,}"],
        ["machines", ", ".join(rate.hosts[:20]) or "–"],
    ]
    if rate.n_untimed:
        rows.append(["not timed", f"{rate.n_untimed:,} sources of parts without a time"])
    failed = [
        f"part {part.get('part')}: {part.get('reason')}"
        for part in source.status.get("set_aside", [])[:20]
    ]
    plots = [plot] if rate.n_parts >= MIN_PARTS else []  # fewer are a rectangle or two
    return {"why": "", "plots": plots, "rows": rows, "failed": failed}


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.3g} s"
    whole = round(seconds)
    return f"{whole // 3600:d} h {whole // 60 % 60:02d} min {whole % 60:02d} s"


def provenance(source: PageSource) -> list[tuple[str, str]]:
    """Return how the catalogue and the page were made: (name, value)."""
    about = source.provenance
    identity = about.get("identity")
    identity = identity if isinstance(identity, dict) else {}
    facts = {
        "Command": about.get("command"),
        "photozhpc of the run": about.get("photozhpc"),
        "Survey": about.get("survey"),
        "Store": about.get("store"),
        "Store fingerprint (SHA-256)": identity.get("store_fingerprint"),
        "Checkpoint": about.get("checkpoint"),
        "Checkpoint SHA-256": identity.get("checkpoint_sha256"),
        "Device": about.get("device"),
        "Model compiled": {True: "yes", False: "no"}.get(identity.get("compiled")),  # type: ignore[arg-type]
        "Minimum rows per part": identity.get("rows_per_part"),
        "Schema version": identity.get("schema_version"),
        "Catalogue": str(source.path.absolute()),
    }
    now = datetime.datetime.now(datetime.UTC)
    facts["This page"] = (
        f"{now:%Y-%m-%d %H:%M} UTC on {socket.gethostname()} ({platform.system()} "
        f"{platform.machine()}), photozhpc {__version__}, Python {platform.python_version()}, "
        f"NumPy {np.__version__}, Matplotlib {matplotlib.__version__}"
    )
    return [(name, str(value)) for name, value in facts.items() if value not in (None, "")]


def summary(
    source: PageSource, scan: CatalogScan, where: Sky, accuracy: Accuracy
) -> dict[str, Any]:
    """Return the head of the page: the state of the run and its figures of merit."""
    survey = source.provenance.get("survey")
    flagged = scan.n_rows - scan.flag_values.get(0, 0)
    area = where.area_arcmin2
    sample_N = np.empty(0) if scan.sample is None else floats(scan.sample, "photoz")
    facts = [
        ("sources", f"{scan.n_rows:,}"),
        ("with a redshift", f"{scan.n_photoz:,}"),
        ("flagged", f"{flagged:,}"),
        ("area", area_text(area) if area else "–"),
    ]
    if scan.n_photoz:
        facts.append(("mean redshift", f"{scan.z_sum / scan.n_photoz:.3f}"))
    if accuracy.evaluation is not None:
        statistics = accuracy.evaluation.groups["overall"][0].statistics
        facts += [
            ("NMAD", _with_error(statistics["nmad"], ".4f")),
            ("bias", with_minus(_with_error(statistics["bias"], "+.4f"))),
            ("outliers", f"{_with_error(statistics['outlier_fraction'], '.1f', 100)} %"),
        ]
    return {
        "survey": str(survey) if survey else source.folder.absolute().name,
        "facts": facts,
        "unfinished": _unfinished(source),
        "warnings": [*warnings_of(source.provenance), *doubts(scan.n_rows, flagged, sample_N)],
        "state": source.status.get("state", ""),
    }


def _with_error(statistic: Estimate, form: str, scale: float = 1) -> str:
    error = scale * statistic.error
    shown = f" ± {error:{form.lstrip('+')}}" if np.isfinite(error) else ""
    return f"{scale * statistic.value:{form}}{shown}"


def _unfinished(source: PageSource) -> str:
    if source.is_finished:
        return ""
    status = source.status
    verb = "is still running" if status.get("state") == "running" else "has stopped"
    return (
        f"The run {verb}: {len(source.parts):,} of {status.get('parts', 0):,} parts are finished, "
        f"{status.get('sources_done', 0):,} of {status.get('sources', 0):,} sources. Everything "
        f"below is about the finished parts."
    )
