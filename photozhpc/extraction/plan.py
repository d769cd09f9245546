"""What an extraction will do, known before any work: tiles, sources, columns, calibration."""

import warnings
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from photozhpc.errors import PhotozError
from photozhpc.extraction.assign import assign_tiles
from photozhpc.extraction.mosaics import ALL_BANDS, check_pixel_scale, find_mosaics
from photozhpc.extraction.preflight import check_bands, check_positions
from photozhpc.files.objects import AnyPath, is_remote, location
from photozhpc.mosaic.band_image import BandPlane
from photozhpc.mosaic.footprint import read_footprints
from photozhpc.mosaic.grid import pixel_area_arcsec2
from photozhpc.mosaic.tile import open_planes
from photozhpc.sources.dust import describe_map, fill_ebv
from photozhpc.sources.find import find_source_lists, read_survey_lists, sources_to_measure
from photozhpc.sources.read import JoinedLists, Sources
from photozhpc.survey import Survey

_SHOWN = 8  # unused columns


@dataclass(frozen=True)
class ExtractionPlan:
    """The tiles and sources of an extraction.

    Attributes:
        tile_mosaics: {tile_id: {band: path}}.
        lists: the source lists.
        joined: all that they hold.
        sources: those that will be measured.
        tile_N: index of each one's tile; -1: none.
        n_without_ebv: how many take their E(B-V) from the map.
        notes: remarks for the user.
    """

    survey: Survey
    tile_mosaics: dict[str, dict[str, AnyPath]]
    lists: tuple[AnyPath, ...]
    joined: JoinedLists
    sources: Sources
    tile_N: NDArray[np.int64]
    ebv_map: str
    n_without_ebv: int
    notes: tuple[str, ...]

    def lines(self, check: bool) -> list[str]:
        """Return the plan as lines for people.

        Args:
            check: raise the error of a mosaic that cannot be used, instead of naming it.

        Raises:
            MosaicError: with `check`, a mosaic of the first tile cannot be used.
        """
        counts = Counter(band for bands in self.tile_mosaics.values() for band in bands)
        names = {ALL_BANDS: "of all bands"}
        mosaics = ", ".join(f"{n} {names.get(band, band)}" for band, n in counts.items())
        lines = [f"tiles     {len(self.tile_mosaics)}, mosaics: {mosaics}"]
        lines += self._calibration(check)
        on_N = self.tile_N[self.tile_N >= 0]
        per_tile_T = np.bincount(on_N, minlength=len(self.tile_mosaics))
        lists = ", ".join(path.name for path in self.lists[:2])
        lists += f" and {len(self.lists) - 2} more" if len(self.lists) > 2 else ""
        text = f"sources   {len(self.sources)} of {lists}: {per_tile_T.min()}"
        text += f" to {per_tile_T.max()}" if per_tile_T.min() < per_tile_T.max() else ""
        lines.append(f"{text} per tile, {len(self.tile_N) - len(on_N)} on none")
        used = ", ".join(f"{what} {column}" for what, column in self.joined.columns.items())
        unused = ", ".join(self.joined.unused[:_SHOWN])
        unused += " ..." if len(self.joined.unused) > _SHOWN else ""
        lines.append(f"columns   {used}" + (f"; not used: {unused}" if unused else ""))
        z_M = self.sources.z_spec_N[np.isfinite(self.sources.z_spec_N)]
        span = f", z {z_M.min():.4g} to {z_M.max():.4g}" if len(z_M) else ""
        lines.append(f"labels    {len(z_M)}{span}")
        n_listed = len(self.sources) - self.n_without_ebv
        origins = [f"of the list ({n_listed})"] if n_listed else []
        if self.n_without_ebv:
            origins.append(f"{describe_map(self.ebv_map)} ({self.n_without_ebv})")
        lines.append(f"E(B-V)    {', '.join(origins)}")
        return lines

    def _calibration(self, check: bool) -> list[str]:
        """Describe how the mosaics of the first tile are read; not those that take long to open."""
        tile_id, bands = next(iter(self.tile_mosaics.items()))
        lines = [f"  of tile '{tile_id}':"]
        for name, path in bands.items():
            if is_remote(path) or path.suffix == ".gz":
                continue
            band = None if name == ALL_BANDS else self.survey.band(name)
            try:
                with warnings.catch_warnings(), np.errstate(all="ignore"):
                    warnings.simplefilter("ignore")  # of astropy and asdf, about headers
                    with open_planes(path, self.survey, band) as planes:
                        lines += [self._plane(tile_id, plane) for plane in planes]
            except PhotozError as error:
                if check:
                    raise
                lines.append(f"  {name:8s}{error}")
        return lines if len(lines) > 1 else []

    def _plane(self, tile_id: str, plane: BandPlane) -> str:
        scale_arcsec = self.survey.pixel_scale_arcsec
        if plane.wcs is not None:
            scale_arcsec = float(np.sqrt(pixel_area_arcsec2(plane.wcs, plane.shape_HW)))
            check_pixel_scale(tile_id, scale_arcsec, self.survey)
        unit = f"1 is {plane.njy_per_unit:.6g} nJy ({plane.calibrated_by})"
        planes = ", ".join(plane.roles)
        return f"  {plane.band:8s}{unit}; planes: {planes}; {scale_arcsec:.4g} arcsec per pixel"


def plan_extraction(
    survey: Survey,
    mosaics: str | AnyPath,
    source_lists: Iterable[str | AnyPath] = (),
    ebv_map: str = "sfd",
    allow_missing_bands: bool = False,
) -> ExtractionPlan:
    """Find and compare mosaics and sources, and write nothing; arguments as for `extract`.

    Raises:
        PhotozError: the mosaics or the lists are faulty, or do not belong together.
    """
    map_text = describe_map(ebv_map)
    notes: list[str] = []
    tile_mosaics = find_mosaics(mosaics, survey, notes)
    if not allow_missing_bands:
        check_bands(tile_mosaics, mosaics, survey)
    lists = list(source_lists) or find_source_lists(mosaics, survey, notes)
    joined = read_survey_lists(lists, survey)
    notes += joined.notes
    footprints = read_footprints(tile_mosaics, survey)
    tile_N = assign_tiles(joined.sources, list(footprints.values()))
    notes += check_positions(joined.sources, tile_N, list(footprints.values()))
    kept_N = sources_to_measure(joined, lists, tile_N, list(tile_mosaics), survey, notes)
    sources = joined.sources[kept_N]
    without_ebv_M = np.flatnonzero(np.isnan(sources.ebv_N))
    fill_ebv(sources[without_ebv_M[:1]], ebv_map)  # fails here if the map cannot be read
    if len(without_ebv_M):
        notes.append(f"E(B-V) of {len(without_ebv_M)} sources whose list has none: {map_text}")
    return ExtractionPlan(
        survey,
        tile_mosaics,
        tuple(map(location, lists)),
        joined,
        sources,
        tile_N[kept_N],
        ebv_map,
        len(without_ebv_M),
        tuple(notes),
    )
