#!/usr/bin/env bash
# From L3 mosaics to a catalogue that LSDB and TOPCAT open.
#
#     l3_to_lsdb.sh OUT [MOSAICS [SURVEY]]
#
# MOSAICS is a folder with {tile}_{band}_coadd.asdf and source lists (*_cat.parquet);
# without one, a small sky is simulated. After an interruption run it again: it continues.
set -euo pipefail
out=${1:?the folder to write to is missing}
mosaics=${2:-$out/l3}
survey=${3:-roman-sim}
mkdir -p "$out"

# 0. Mosaics: yours, or two small tiles of a simulated sky.
if [ $# -lt 2 ]; then
    echo "tile_size_pix: 600" > "$out/small.yaml"
    photozhpc simulate --survey "$survey" --out "$mosaics" --tiles 2 --seed 7 \
        --config "$out/small.yaml"
fi

# 1. Mosaics and source lists -> cutouts and photometry.
photozhpc extract --survey "$survey" --mosaics "$mosaics" --store "$out/store"

# 2. Cutouts -> redshifts, by the bundled model; also as HATS for LSDB, FITS and VOParquet for TOPCAT.
photozhpc infer --survey "$survey" --store "$out/store" --out "$out/catalogue" \
    --export hats --export fits --export vo-parquet
photozhpc verify "$out/catalogue" --store "$out/store"

# 3. A cone search with LSDB: the sources within 10" of the first one.
python - "$out" <<'PYTHON'
import sys

import lsdb
from astropy.table import Table

out = sys.argv[1]
table = Table.read(f"{out}/catalogue/photoz.fits")
ra, dec = float(table["ra"][0]), float(table["dec"][0])

catalogue = lsdb.open_catalog(f"{out}/catalogue/hats")
nearby = catalogue.cone_search(ra, dec, radius_arcsec=10).compute()
print(f"within 10 arcsec of ({ra:.5f}, {dec:.5f}): {len(nearby)} of {len(table)} sources")
print(nearby[["source_id", "photoz", "photoz_flags"]].to_string(index=False))
PYTHON
