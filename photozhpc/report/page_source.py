"""What a report is made from: the parts, the run's folder, its store, whatever of it is there."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from photozhpc.catalog.notes import run_folder_of
from photozhpc.catalog.part_file import PROVENANCE_KEY, read_footer
from photozhpc.catalog.photoz_catalog import catalog_parts
from photozhpc.catalog.status import status_of
from photozhpc.errors import CatalogError, PhotozError
from photozhpc.files.disk import parse_json
from photozhpc.files.objects import location
from photozhpc.store import CutoutStore


@dataclass(frozen=True)
class PageSource:
    """A catalogue and what lies around it.

    Attributes:
        path: as it was given; folder: where the page goes by default.
        parts: its files.
        run: the --out folder of the run; None where there is none.
        status: as `photozhpc status` says it; {} without a run.
        provenance: of the first part.
        store: None if it is gone, unknown or damaged; why_no_store then says so.
    """

    path: Path
    folder: Path
    parts: list[Path]
    run: Path | None
    status: dict[str, Any]
    provenance: dict[str, Any]
    store: CutoutStore | None
    why_no_store: str = ""

    @property
    def is_finished(self) -> bool:
        return not self.status or self.status.get("state") == "finished"


def open_source(path: Path) -> PageSource:
    """Find the parts of a catalogue, finished or not, and what lies around them.

    Raises:
        CatalogError: there is no catalogue, or nothing of it is finished.
    """
    if not path.exists():
        raise CatalogError(f"{path}: no such folder or file; pass the --out of 'photozhpc infer'")
    run = run_folder_of(path)
    folder = run or (path if path.is_dir() else path.parent)
    try:
        parts = catalog_parts(path, incomplete_ok=True)
    except CatalogError:
        if run is None:
            raise
        raise CatalogError(
            f"{path}: no part of the catalogue is finished yet; 'photozhpc status {path}' says how "
            f"far it is"
        ) from None
    status = status_of(run) if run is not None else {}
    provenance = _provenance(parts[0])
    store, why = _store(provenance, folder)
    return PageSource(path, folder, parts, run, status, provenance, store, why)


def _provenance(part: Path) -> dict[str, Any]:
    text = (read_footer(part)[0].metadata or {}).get(PROVENANCE_KEY, b"{}")
    try:
        return parse_json(text)
    except ValueError:
        return {}


def _store(provenance: dict[str, Any], folder: Path) -> tuple[CutoutStore | None, str]:
    """Return the store that the catalogue was made of, or None and why."""
    noted = provenance.get("store")
    if not isinstance(noted, str):
        return None, "The catalogue does not say which store it was made of."
    try:
        # A run's folder that was moved took the store inside it along.
        places = [location(noted), folder / Path(noted).name]
        place = next((place for place in places if (place / "zarr.json").is_file()), None)
        if place is None:
            return None, f"The store {noted} is no longer there."
        store = CutoutStore.open(place)
        identity = provenance.get("identity")
        fingerprint = identity.get("store_fingerprint") if isinstance(identity, dict) else None
        if fingerprint is not None and store.fingerprint() != fingerprint:
            return None, f"The store {place} has changed since, or is another one."
    except PhotozError as error:
        return None, f"The store cannot be read: {error}"
    return store, ""
