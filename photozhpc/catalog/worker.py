"""What a worker imports, in the process that all workers are forked from."""

import gc

gc.disable()  # else it scans a million new objects again and again: a fifth of the import time

import sys  # noqa: E402

import numpy as np  # noqa: E402
import pyarrow as pa  # noqa: E402


class _NoPandas:
    """Keeps pyarrow from importing pandas at its first conversion: half a second, for nothing."""

    @staticmethod
    def find_spec(name: str, *_: object) -> None:
        if name == "pandas":
            raise ImportError("a worker needs no pandas")


sys.meta_path.insert(0, _NoPandas)
pa.array(np.zeros(1))
sys.meta_path.remove(_NoPandas)

import photozhpc.workers.dask_import  # noqa: E402, I001
import photozhpc.catalog.predict  # noqa: E402
import photozhpc.model.engine  # noqa: E402
import photozhpc.model.store_note  # noqa: E402, F401
from photozhpc.mosaic.cutouts import count_finite  # noqa: E402
from photozhpc.mosaic.defects import find_defects  # noqa: E402

# These load the compiled kernels.
count_finite(np.zeros((1, 1, 1, 1), np.float32), 1)
find_defects(np.zeros((1, 1, 16, 16), np.float32), 16, np.ones(1))

gc.freeze()  # the workers share the memory of these objects as long as no collection touches them
gc.enable()
