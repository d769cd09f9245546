"""Short runs of inference."""

import os
import signal
import time

from photozhpc.catalog.predict import predict_part

TILES = {"a": 400, "b": 30, "c": 5, "off-tile": 3, "z": 200}
SMALL = {"survey": None, "workers": 2, "device": "cpu", "rows_per_part": 64, "progress": False}
ALONE = {**SMALL, "workers": 1}


def poisoned(model, part, *rest):
    """Stands for `predict_part`: one part kills whatever worker tries it."""
    if part.index == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    return predict_part(model, part, *rest)


def late_first(model, part, *rest):
    """Stands for `predict_part`: the first part is the last to be ready."""
    if part.index == 0:
        time.sleep(2)
    return predict_part(model, part, *rest)
