"""docs/l3_to_lsdb.sh: from mosaics to a cone search."""

from pathlib import Path

import pytest
from astropy.coordinates import SkyCoord
from astropy.table import Table
from snippets import Runner

from builders.paths import ROOT


@pytest.mark.timeout(400)
def test_the_cone_search_of_the_script_finds_what_is_there(tmp_path: Path) -> None:
    """Its page shows what comes out: the rows within 10 arcsec, by the angles between all."""
    reader = Runner.in_checkout(tmp_path)
    reader.run_page(ROOT / "docs/cone_search.md")
    printed = reader.outputs["bash docs/l3_to_lsdb.sh dr1"]
    table = Table.read(tmp_path / "dr1/catalogue.fits")
    sky = SkyCoord(table["ra"], table["dec"], unit="deg")
    near = table["source_id"][sky.separation(sky[0]).arcsec < 10]
    rows = printed.split("photoz_flags\n")[-1].splitlines()
    assert sorted(int(row.split()[0]) for row in rows) == sorted(near)
    assert len(near) > 1
