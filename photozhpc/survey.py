"""Survey and Band: everything that measuring a survey's mosaics requires."""

import fnmatch
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from photozhpc.config import bundled_configs, read_config
from photozhpc.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

_NAME = re.compile(r"[^\W_][\w .+-]{0,99}")
_PLACEHOLDERS = re.compile(r"\{tile(?::[^{}]*)?\}|\{band\}")
MAX_CUTOUT_PIX = 2048
AB_ZERO_POINT_NJY = 31.4


def ab_magnitude(flux_njy: "ArrayLike") -> "NDArray[Any]":
    """Return m_AB = 31.4 - 2.5 log10(flux / nJy); NaN where the flux is not positive."""
    import numpy as np  # commands that need no arrays start without it

    flux = np.asarray(flux_njy, np.float64)
    return AB_ZERO_POINT_NJY - 2.5 * np.log10(np.where(flux > 0, flux, np.nan))


def flux_of_ab(magnitude_ab: Any) -> Any:
    """Return the flux in nJy of AB magnitudes: a number, or an array of any shape."""
    return 10.0 ** (-0.4 * (magnitude_ab - AB_ZERO_POINT_NJY))


def names_of(value: str | tuple[str, ...] | None) -> tuple[str, ...]:
    """Return one name, several, or none as a tuple."""
    return (value,) if isinstance(value, str) else value or ()


@dataclass(frozen=True)
class Band:
    """One photometric band.

    Attributes:
        name: as in file names and catalogue columns, e.g. "F158"; ASCII (for FITS), no spaces.
        zero_point_ab: AB magnitude of one count (per second) of the mosaic; None where the
            file states its own calibration (a surface-brightness unit, PHOTFLAM, MAGZERO). Of a
            photometric catalogue: see FluxColumns.
        psf_fwhm_arcsec: full width at half maximum of the mosaic's PSF; not needed for a
            photometric catalogue.
        extinction_r: R of A = R * E(B-V), in magnitudes; 0 for fluxes that are dereddened.
    """

    name: str
    psf_fwhm_arcsec: float = 0.0
    extinction_r: float = math.nan
    zero_point_ab: float | None = None

    def __post_init__(self) -> None:
        if not self.name:
            raise ValueError("a band needs a name")
        if not re.fullmatch(r"[!-~]+", self.name):
            raise ValueError(f"name must be ASCII without spaces, got {self.name!r}")
        if not 0 <= self.psf_fwhm_arcsec < math.inf:
            raise ValueError(f"psf_fwhm_arcsec must be positive, got {self.psf_fwhm_arcsec}")
        if math.isnan(self.extinction_r):
            raise ValueError("extinction_r is missing")
        if not 0 <= self.extinction_r < math.inf:
            raise ValueError(f"extinction_r must not be negative, got {self.extinction_r}")
        if self.zero_point_ab is not None and not math.isfinite(self.zero_point_ab):
            raise ValueError(f"zero_point_ab must be finite, got {self.zero_point_ab}")


@dataclass(frozen=True)
class SourceColumns:
    """Names of the columns of a source list. None: the survey's lists have no such column.

    A name that differs only in case is used where no column has exactly this name.

    Attributes:
        source_id: integers that are unique over all lists; of several names, the first that a
            list has. null: the rows of the list are numbered. In a photometric catalogue also
            text, see `identifiers.id_of_text`.
        number: integers that are unique only within their list, for lists without `source_id`; the
            identifier is then made of the list's {tile} (or else its file name) and the number.
        ra, dec: ICRS, degrees; other units (rad, hourangle, arcsec) where the list states them.
            null, of a photometric catalogue: it has no positions.
        z_spec: labels, by priority: where the first has no value (or none above 0), the second is
            used.
        ebv: Galactic E(B-V), magnitudes, by priority as z_spec.
        a_v: Galactic A_V, magnitudes, for lists without `ebv`: E(B-V) = A_V / 2.742, on the
            scale of the SFD map (Schlafly & Finkbeiner 2011).
    """

    source_id: str | tuple[str, ...] | None = "source_id"
    ra: str | None = "ra"
    dec: str | None = "dec"
    z_spec: str | tuple[str, ...] | None = "z_spec"
    ebv: str | tuple[str, ...] | None = "ebv"
    number: str | None = None
    a_v: str | None = None

    def __post_init__(self) -> None:
        used: set[str] = set()
        for key, value in vars(self).items():
            if value is not None and not (names_of(value) and all(names_of(value))):
                raise ValueError(f"{key} must name a column")
            for name in names_of(value):
                if name.lower() in used:
                    raise ValueError(f"{key}: the column '{name[:60]}' appears twice")
                used.add(name.lower())


@dataclass(frozen=True)
class FluxColumns:
    """Columns of a photometric catalogue: one flux, or magnitude, of every band.

    Without a flux, or where there are errors without a positive error, a source counts as not
    measured in the band; so does a magnitude beyond +-50 (99, -99, ...).

    Attributes:
        value: name of the columns, with {band}: the band's name or one of its `band_aliases`.
        error: name of the columns of the standard errors, in the same unit; "": there are none.
        kind: "flux" (the unit is that of the column, or else `unit`, or else such that one unit of
            flux has the AB magnitude `zero_point_ab` of the band), or "magnitude" (AB; or, with
            `zero_point_ab`, such that 0 is that AB magnitude).
        unit: of fluxes in columns that state none, as astropy writes it: nJy, uJy, nanomaggy.
        missing: numbers that mean 'not measured', beside NaN, nulls and those named above.
        upper_limit: number in the magnitude's column where nothing was detected and the error's
            column holds the magnitude of one standard error (99 in EAZY's and BPZ's catalogues).
    """

    value: str
    error: str = ""
    kind: Literal["flux", "magnitude"] = "flux"
    unit: str = ""
    missing: tuple[float, ...] = ()
    upper_limit: float | None = None

    def __post_init__(self) -> None:
        for key in ("value", "error"):
            if getattr(self, key).count("{band}") != 1 and (key, self.error) != ("error", ""):
                raise ValueError(
                    f"{key} must name columns with {{band}}, got {getattr(self, key)[:60]!r}"
                )
        if self.upper_limit is not None and not self.error:
            raise ValueError("upper_limit needs error columns, which hold the limits")
        if self.upper_limit is not None and self.kind == "flux":
            raise ValueError("upper_limit is only for magnitudes: a flux can be measured as 0")
        if self.unit and self.kind == "magnitude":
            raise ValueError("unit is only for fluxes: magnitudes are AB, or need zero_point_ab")


@dataclass(frozen=True)
class Survey:
    """A survey: its bands in channel order, its grid, and the layout of its files.

    Attributes:
        name: as in files, checkpoints and messages: letters, digits, spaces, . _ + and -.
        bands: in the order of the network's channels.
        pixel_scale_arcsec: side of a pixel of the mosaics; not needed for a photometric catalogue.
        description: one line for people.
        mosaic_pattern: file name of one band of one tile, with {tile}, {band}, and * for any text;
            case does not matter. {band} is the band's name or one of `band_aliases`. {tile:REGEX}
            restricts the tile's name; a repeated group in it may hold neither another repetition
            nor alternatives. Of several patterns the first that matches a name is used.
        skip_mosaics: globs of file names of mosaics that are ignored.
        prefer_mosaics: globs of file names, the best first. Of several mosaics of one band of one
            tile the best is used, among equals the one of the longest exposure, then the last
            by name. Empty: several are an error.
        layer: the science image is this layer of the first image of a FITS file, and the file's
            other layers and extensions are not used. None: extensions are identified by their
            names.
        image_extension: name, or number as a text ("0": the first), of the FITS extension that is
            the science image. None: it is identified by its name.
        bad_mask_bits: bits of a mask or DQ plane that make a pixel bad, by the names in its header
            (MP_BAD: BAD) or by number from 0, or ZERO, where 0 is bad; []: no mask is used. None:
            the bad bits of the header or the telescope where they are known, else any bit.
        zero_is_blank: whether exact zeros are pixels without data, where no error, weight or mask
            shows it; null: the image itself shows it.
        band_aliases: what file names have in place of a band's name, and that name.
        source_pattern: globs of file names of source lists beside the mosaics. With {tile} a list
            belongs to one tile: it holds the sources that are measured on that tile, and of
            several lists of a tile one is used, by the order of the patterns, then by
            `prefer_mosaics`. Patterns without {tile} are used only if no list matches one with it.
        keep_off_tile: whether sources on no tile are stored (flagged, without an image).
        source_columns: names of the columns of those lists.
        z_spec_max: upper limit of a label; lower it where a list marks 'no redshift' with a number
            like 9.9. Numbers of nines (9.99, 99, 999) are never labels.
        aperture_radii_arcsec: radii of the forced circular apertures.
        sky_annulus_arcsec: inner and outer radius of the local-sky annulus; empty: no sky is
            subtracted from fluxes.
        subtract_sky: whether that local sky is also subtracted from the cutouts, for mosaics that
            are not sky-subtracted; fluxes never include it.
        cutout_size: side of the stored cutouts, pixels.
        aperture_columns: for a photometric catalogue instead of mosaics: the columns of the fluxes
            in each of `aperture_radii_arcsec`.
        total_columns: the same for total fluxes (Kron, model, auto), which go where a store has
            its Kron fluxes.
    """

    name: str
    bands: tuple[Band, ...]
    pixel_scale_arcsec: float = 0.0
    description: str = ""
    mosaic_pattern: str | tuple[str, ...] = "{tile}_{band}_coadd.asdf"
    band_aliases: dict[str, str] = field(default_factory=dict, hash=False)
    skip_mosaics: tuple[str, ...] = ()
    prefer_mosaics: tuple[str, ...] = ()
    layer: int | None = None
    image_extension: str | None = None
    bad_mask_bits: tuple[str | int, ...] | None = None
    zero_is_blank: bool | None = None
    source_pattern: str | tuple[str, ...] = "*cat.parquet"
    keep_off_tile: bool = True
    source_columns: SourceColumns = SourceColumns()
    z_spec_max: float = 20.0
    aperture_radii_arcsec: tuple[float, ...] = (0.1, 0.2, 0.4, 0.8, 1.6)
    sky_annulus_arcsec: tuple[float, ...] = (2.4, 2.8)
    subtract_sky: bool = False
    cutout_size: int = 64
    aperture_columns: tuple[FluxColumns, ...] = ()
    total_columns: FluxColumns | None = None

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ValueError(
                f"name must be at most 100 letters, digits, spaces, . _ + or -, and begin with a "
                f"letter or digit (folders are named after it), got {self.name[:120]!r}"
            )
        if not self.bands:
            raise ValueError("a survey needs at least one band")
        names = [band.name for band in self.bands]
        if len({name.lower() for name in names}) != len(names):
            raise ValueError(f"bands must differ in more than case, got {names}")
        for alias, target in self.band_aliases.items():
            if target.lower() not in {name.lower() for name in names}:
                raise ValueError(
                    f"band_aliases: '{alias[:60]}' stands for '{target[:60]}', which is not a band"
                )
        _check_patterns("mosaic_pattern", names_of(self.mosaic_pattern))
        _check_patterns("source_pattern", names_of(self.source_pattern))
        if self.layer is not None and self.layer < 0:
            raise ValueError(f"layer must not be negative, got {self.layer}")
        for bit in self.bad_mask_bits or ():
            if isinstance(bit, int) and not 0 <= bit < 62:
                raise ValueError(f"bad_mask_bits: bits have numbers from 0 to 61, got {bit}")
        if not self.z_spec_max > 0:
            raise ValueError(f"z_spec_max must be positive, got {self.z_spec_max}")
        has_scale = 0 < self.pixel_scale_arcsec < math.inf
        if not has_scale and not (self.has_flux_columns and self.pixel_scale_arcsec == 0):
            raise ValueError(f"pixel_scale_arcsec must be positive, got {self.pixel_scale_arcsec}")
        if not self.has_flux_columns:
            for band in self.bands:
                if not band.psf_fwhm_arcsec:
                    raise ValueError(f"psf_fwhm_arcsec of band {band.name} is missing")
            if self.source_columns.ra is None or self.source_columns.dec is None:
                raise ValueError("source_columns: ra and dec are needed to find the sources")
        radii = self.aperture_radii_arcsec
        if self.aperture_columns and len(self.aperture_columns) != len(radii):
            raise ValueError(
                f"aperture_columns needs one entry for each of aperture_radii_arcsec {radii}, got "
                f"{len(self.aperture_columns)}"
            )
        if not (radii or self.total_columns) or not all(0 < radius < math.inf for radius in radii):
            raise ValueError(f"aperture_radii_arcsec needs positive radii, got {radii}")
        if len(self.sky_annulus_arcsec) not in (0, 2):
            raise ValueError("sky_annulus_arcsec must be [inner, outer] or empty")
        if self.sky_annulus_arcsec and not (
            0 < self.sky_annulus_arcsec[0] < self.sky_annulus_arcsec[1] < math.inf
        ):
            raise ValueError(
                f"sky_annulus_arcsec must be 0 < inner < outer, got {self.sky_annulus_arcsec}"
            )
        if self.subtract_sky and not self.sky_annulus_arcsec:
            raise ValueError("subtract_sky needs a sky_annulus_arcsec in which to measure the sky")
        if not 8 <= self.cutout_size <= MAX_CUTOUT_PIX:
            raise ValueError(f"cutout_size must be 8 to {MAX_CUTOUT_PIX}, got {self.cutout_size}")

    @property
    def has_flux_columns(self) -> bool:
        """Whether it describes a photometric catalogue."""
        return bool(self.aperture_columns) or self.total_columns is not None

    @property
    def band_names(self) -> tuple[str, ...]:
        return tuple(band.name for band in self.bands)

    def band(self, name: str) -> Band:
        """Return the band called `name` (case does not matter) or its alias.

        Raises:
            ConfigError: no such band; the nearest name is suggested.
        """
        band = self.find_band(name)
        if band is None:
            raise ConfigError(
                f"survey '{self.name}' has no band '{name}'{did_you_mean(name, self.band_names)}"
            )
        return band

    def find_band(self, name: str) -> Band | None:
        """Return the band called `name` (case does not matter) or its alias, or None."""
        aliases = {alias.lower(): target for alias, target in self.band_aliases.items()}
        band_name = aliases.get(name.lower(), name).lower()
        return next((band for band in self.bands if band.name.lower() == band_name), None)

    def match_mosaic(self, file_name: str) -> tuple[str, Band | None] | None:
        """Return (tile, band) of a file name by `mosaic_pattern`; None if none matches.

        A final .gz or .fz is ignored. The band is None where the pattern has none.
        """
        if _first_match(file_name, self.skip_mosaics) is not None:
            return None
        names = sorted([*self.band_names, *self.band_aliases], key=len, reverse=True)
        band = f"(?P<band>{'|'.join(map(re.escape, names))})"
        for pattern in names_of(self.mosaic_pattern):
            parts = _match(pattern, band, file_name)
            if parts is not None:
                return parts.get("tile", ""), self.band(parts["band"]) if "band" in parts else None
        return None

    def other_band(self, file_name: str) -> str | None:
        """Return what stands for the band in a file name that fits but for its band, or None."""
        if self.match_mosaic(file_name) or _first_match(file_name, self.skip_mosaics) is not None:
            return None
        for pattern in names_of(self.mosaic_pattern):
            parts = _match(pattern, "(?P<band>[A-Za-z0-9-]+)", file_name)
            if parts is not None and "band" in parts:
                return parts["band"]
        return None

    def match_source_list(self, file_name: str) -> tuple[int, str | None] | None:
        """Return (index of the pattern, tile) of a list's file name by `source_pattern`.

        The tile is None where the pattern has none. None: no pattern matches.
        """
        for index, pattern in enumerate(names_of(self.source_pattern)):
            if "{tile" not in pattern:
                if fnmatch.fnmatchcase(file_name, pattern):
                    return index, None
                continue
            parts = _match(pattern, "(?P<band>.+?)", file_name)
            if parts is not None:
                return index, parts["tile"]
        return None

    def preference(self, file_name: str) -> int:
        """Return the rank of a file name in `prefer_mosaics`; the last if no glob matches."""
        rank = _first_match(file_name, self.prefer_mosaics)
        return len(self.prefer_mosaics) if rank is None else rank


def _check_patterns(key: str, patterns: tuple[str, ...]) -> None:
    if not patterns or not all(patterns):
        raise ValueError(f"{key} must not be empty")
    for pattern in patterns:
        try:
            _match(pattern, "(?P<band>x)", "")
        except (re.error, RecursionError) as error:
            raise ValueError(
                f"{key} '{pattern[:80]}': 'tile:' needs a regular expression ({error})"
            ) from None
        for regex in _PLACEHOLDERS.findall(pattern):
            if _may_never_end(regex[6:-1]):
                raise ValueError(
                    f"{key} '{pattern[:80]}': matching {regex[:80]} can take forever; do not "
                    f"repeat a group that holds a repetition or alternatives"
                )
        if re.search(r"[{}]", _PLACEHOLDERS.sub("", pattern)):
            raise ValueError(
                f"{key} '{pattern[:80]}' has a brace outside {{tile}}, {{tile:REGEX}} and "
                "{band}; REGEX itself cannot hold braces"
            )


def _may_never_end(regex: str) -> bool:
    """Whether a repeated group holds +, *, ? or | itself, as in (a+)+: Python may then try every
    way to split a name among the repetitions, of which there are exponentially many.
    """
    rest = re.sub(r"\\.", "a", regex)
    rest = re.sub(r"\[\^?\]?[^\]]*\]", "a", rest)
    rest = re.sub(r"\(\?(?:P<\w+>|P[=>]\w+|<?[=!]|[>:]|[a-zA-Z-]+:?)", "(", rest)
    while group := re.search(r"\(([^()]*)\)([*+]?)", rest):
        if group[2] and re.search(r"[*+?|]", group[1]):
            return True
        rest = rest[: group.start()] + (group[1] or "a") + group[2] + rest[group.end() :]
    return False


def _first_match(file_name: str, globs: tuple[str, ...]) -> int | None:
    """Return the index of the first glob that matches the name; case does not matter."""
    name = file_name.lower()
    return next((i for i, g in enumerate(globs) if fnmatch.fnmatchcase(name, g.lower())), None)


def _match(pattern: str, band: str, file_name: str) -> dict[str, str] | None:
    """Match a name with {tile}, {tile:REGEX}, {band} and *; None if it does not match."""
    seen: set[str] = set()
    regex = ""
    for part in re.split(rf"({_PLACEHOLDERS.pattern}|\*+)", pattern):
        name = part[1:5] if part.startswith(("{tile", "{band}")) else ""
        if name in seen:
            regex += f"(?P={name})"
        elif name == "tile":
            regex += f"(?P<tile>{part[6:-1] or '.+?'})"
        elif name == "band":
            regex += band
        else:
            regex += ".*?" if part.startswith("*") else re.escape(part)
        seen |= {name} - {""}
    match = re.fullmatch(regex + r"(\.gz|\.fz)?", file_name, re.IGNORECASE)
    return None if match is None else match.groupdict()


def survey_names() -> list[str]:
    """Return the names of the surveys that come with the package."""
    return list(bundled_configs("survey"))


def load_survey(name_or_yaml_path: str | Path) -> Survey:
    """Load a survey of the package by its name, or your own by its path.

    Raises:
        ConfigError: unknown name (the nearest is suggested) or a faulty file.
    """
    return read_config(Survey, name_or_yaml_path, "survey")
