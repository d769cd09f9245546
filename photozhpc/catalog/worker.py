"""What a worker imports, all at once, in the process that the workers are forked from."""

import gc

gc.disable()  # it would look through a million new objects again and again: a fifth of the time

import distributed  # noqa: E402, F401
import numpy as np  # noqa: E402

import photozhpc.catalog.predict  # noqa: E402
import photozhpc.model.engine  # noqa: E402, F401
from photozhpc.mosaic.cutouts import count_finite  # noqa: E402

count_finite(np.zeros((1, 1, 1, 1), np.float32), 1)  # loads the compiled kernel

gc.freeze()  # and what is there now is shared by the workers' memory, as long as nobody touches it
gc.enable()
