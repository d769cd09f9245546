"""The input of a report: the parts of a catalogue and, if they exist, its run and its store."""

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
    """A catalogue, its run and its store.

    Attributes:
        path: the path that the user gave.
        folder: default folder of the page.
        parts: files of the catalogue.
        run: the --out folder of the run, or None.
        status: as `photozhpc status --json` prints it; {} without a run.
        provenance: provenance of the first part.
        store: None if it is missing, unknown or damaged; why_no_store then says why.
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
    """Find the parts, the run and the store of a catalogue, finished or not.

    Raises:
        CatalogError: there is no catalogue, or none of its parts is finished.
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
            f"{path}: no part of the catalogue is finished yet; 'photozhpc status {path}' shows "
            f"how far it has got"
        ) from None
    status = status_of(run) if run is not None else {}
    try:
        metadata = read_footer(parts[0])[0].metadata or {}
        provenance = parse_json(metadata.get(PROVENANCE_KEY, b"{}"))
    except ValueError:
        provenance = {}
    store, why = _store(provenance, folder)
    return PageSource(path, folder, parts, run, status, provenance, store, why)


def _store(provenance: dict[str, Any], folder: Path) -> tuple[CutoutStore | None, str]:
    """Return the store that the catalogue was made from, or None and the reason."""
    path = provenance.get("store")
    if not isinstance(path, str):
        return None, "The catalogue does not say which store it was made from."
    try:
        # If the run's folder was moved, a store inside it has moved along.
        places = [location(path), folder / Path(path).name]
        place = next((place for place in places if (place / "zarr.json").is_file()), None)
        if place is None and places[0].is_file():
            return None, f"The catalogue was made from a table of fluxes, {path}, without images."
        if place is None:
            return None, f"The store {path} no longer exists."
        store = CutoutStore.open(place)
        identity = provenance.get("identity")
        fingerprint = identity.get("store_fingerprint") if isinstance(identity, dict) else None
        if fingerprint is not None and store.fingerprint() != fingerprint:
            return None, f"The store {place} has changed since the run, or is another one."
    except PhotozError as error:
        return None, f"The store cannot be read: {error}"
    return store, ""
