"""What the commands make of a small sky, as digests: equal before and after a change of the code.

    python tests/golden.py --save tests/data/golden.json     at the old commit
    python tests/golden.py --check tests/data/golden.json    at the new one, on the same machine

Of a file that says when, how fast, or by which version it was made, what is hashed is the rest:
the columns of Parquet and HDF5 files, the rows and cards of FITS files, and the settled keys of
JSON files. All else is hashed byte for byte.
"""

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import yaml

FOLDER = Path("/tmp/photozhpc-golden")  # paths stand in what is made
RECIPE = {
    "out": "run",
    "batch_size": 64,
    "epochs": 2,
    "refit_steps": 50,
    "density_steps": 50,
    "seed": 1,
    "precision": "float32",
    "device": "cpu",
    "feature_aperture_arcsec": 0.4,
    "model": {
        "encoder": "convnext_atto",
        "encoder_out": 0,
        "encoder_mlp": [64, 32],
        "crop": 32,
        "stretch": "asinh",
        "aperture_radii_pix": [1.8, 3.6, 7.3],
        "redshift_heads": 2,
        "redshift_sees_apertures": True,
        "density_bins": 32,
        "density_z_max": 4.0,
    },
    "loss": {"queue_len": 256},
}
SKY = {"tile_size_pix": 700, "density_scale": 2.0, "label_fraction": 0.5}
COMMANDS = """
simulate --survey roman-sim --out sky --tiles 2 --seed 5 --config sky.yaml --workers 1
detect --survey roman-sim --mosaics sky --out detected.parquet --workers 1
extract --survey roman-sim --mosaics sky --store store --size 48 --workers 1
train --config recipe.yaml --store store --out run
calibrate --checkpoint run/model.safetensors --store store --out calibrated.safetensors
infer --survey roman-sim --store store --checkpoint run/model.safetensors --out cat --workers 1 \
--device cpu --pdf grid
infer --survey roman-sim --store store --out bundled --workers 1 --device cpu --no-compile
evaluate cat --truth store --out evaluation
export cat --format fits --out c.fits
export cat --format fits --columns euclid --out euclid.fits
export cat --format vo-parquet --columns rubin --out c.parquet
export cat --format hats --out hats --workers 1
export cat --format qp --out c.hdf5
verify store
verify cat
info store
info run/model.safetensors
info cat
info c.fits
info detected.parquet
config show roman-sim
""".replace("\\\n", "").strip().splitlines()  # fmt: skip
# What a file says of the moment, of speed and of versions.
UNSETTLED = re.compile(
    r"second|wall|time|date|per_s|pid|version|photozhpc$|created|command|speed|rate|host|memory|_mb|"
    r"uuid|startup|bytes|sha256|snana|builder|fingerprint|checksum|datasum|estsize|^checkpoint$|^at$"
)
LOGS = ("events.jsonl", "notes", "tensorboard", "_metadata", "_common_metadata")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--save", type=Path)
    options.add_argument("--check", type=Path)
    given = options.parse_args()
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir()
    (FOLDER / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    (FOLDER / "sky.yaml").write_text(yaml.safe_dump(SKY))
    for line in COMMANDS:
        words = [sys.executable, "-m", "photozhpc", *line.split()]
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "CUDA_VISIBLE_DEVICES": "",
        }
        done = subprocess.run(words, cwd=FOLDER, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, (line, done.stderr)
    digests = digests_of(FOLDER)
    if given.save:
        given.save.write_text(json.dumps(digests, indent=1) + "\n")
    if given.check:
        before = json.loads(given.check.read_text())
        new = sorted(digests.keys() - before.keys())
        differing = sorted(name for name in before if before[name] != digests.get(name))
        print(*(f"new: {name}" for name in new), sep="\n")
        print(*differing, f"{len(differing)} of {len(before)} differ", sep="\n")
        raise SystemExit(bool(differing))


def digests_of(folder: Path) -> dict[str, str]:
    """Return the digest of each file below a folder, logs apart."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(settled(path)).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not any(part in LOGS for part in path.parts)
    }


def settled(path: Path) -> bytes:
    """Return what a file says that is the same whenever it is made."""
    if path.suffix == ".parquet":
        table = pq.read_table(path)
        names = [f"{field}" for field in table.schema]
        return repr((names, table.num_rows)).encode() + b"".join(
            _column(table[name]) for name in table.schema.names
        )
    if path.suffix in (".json", ".jsonl"):
        lines = path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
        about = [_settled_json(json.loads(line)) for line in lines]
        return json.dumps(about, sort_keys=True).encode()
    if path.suffix == ".safetensors":
        from safetensors import safe_open

        with safe_open(path, "np") as file:
            about = {
                key: _settled_json(json.loads(text) if text[:1] in "{[" else text)
                for key, text in file.metadata().items()
                if not UNSETTLED.search(key) or key == "photozhpc"
            }
            tensors = b"".join(
                name.encode() + file.get_tensor(name).tobytes() for name in sorted(file.keys())
            )
        return json.dumps(about, sort_keys=True).encode() + tensors
    if path.suffix == ".pt":
        import torch

        return repr(_settled_state(torch.load(path, weights_only=True))).encode()
    if path.name.endswith("properties"):
        lines = path.read_text().splitlines()
        return "\n".join(line for line in lines if not UNSETTLED.search(line)).encode()
    if path.suffix == ".fits":
        from astropy.io import fits

        with fits.open(path) as hdus:
            cards = [
                str(c)
                for hdu in hdus
                for c in hdu.header.cards
                if c.keyword != "HISTORY" and not UNSETTLED.search(str(c).lower())
            ]
            return repr(cards).encode() + b"".join(
                b"" if h.data is None else np.ascontiguousarray(h.data).tobytes() for h in hdus
            )
    if path.suffix == ".asdf":
        import asdf

        with asdf.open(path) as file:
            roman = file["roman"]
            arrays = {name: node for name, node in roman.items() if hasattr(node, "dtype")}
            return b"".join(
                name.encode() + np.asarray(arrays[name]).tobytes() for name in sorted(arrays)
            )
    if path.suffix == ".hdf5":
        import h5py

        parts: list[bytes] = []
        with h5py.File(path) as file:
            file.visititems(
                lambda name, item: (
                    parts.append(name.encode() + np.asarray(item).tobytes())
                    if isinstance(item, h5py.Dataset) and "version" not in name
                    else None
                )
            )
        return b"".join(parts)
    if path.suffix == ".pdf":
        return b"".join(re.findall(rb"stream\r?\n(.*?)endstream", path.read_bytes(), re.DOTALL))
    return path.read_bytes()


def _column(column) -> bytes:
    return repr(column.to_pylist()).encode()


def _settled_json(value):
    if isinstance(value, dict):
        return {k: _settled_json(v) for k, v in value.items() if not UNSETTLED.search(k.lower())}
    if isinstance(value, list):
        return [_settled_json(item) for item in value]
    return None if isinstance(value, int) and value > 1e18 else value  # mtime_ns of a mosaic


def _settled_state(value):
    if isinstance(value, dict):
        items = sorted(value.items(), key=lambda item: str(item[0]))
        return [(k, _settled_state(v)) for k, v in items if not UNSETTLED.search(str(k).lower())]
    if isinstance(value, list | tuple):
        return [_settled_state(item) for item in value]
    if hasattr(value, "numpy"):
        return hashlib.sha256(value.contiguous().numpy().tobytes()).hexdigest()
    return None if re.fullmatch("[0-9a-f]{32,64}", str(value)) else value  # of files with times


if __name__ == "__main__":
    main()
