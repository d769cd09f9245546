"""Progress of a stage: a bar on a terminal or in a notebook, about ten plain lines in a log."""

import sys
import warnings
from threading import RLock

from photozhpc.logs import LOG, is_quiet


class Progress:
    """Shows how many of a number of things are done.

    Args:
        unit: what is counted, in the plural.
    """

    def __init__(self, unit: str) -> None:
        if "ipykernel" in sys.modules:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # without ipywidgets a bar of text will do
                from tqdm.auto import tqdm
        else:
            from tqdm import tqdm

        tqdm.set_lock(RLock())  # tqdm's own is for several processes, and starts one more
        self._unit = unit
        self._bar = tqdm(unit=f" {unit}", disable=is_quiet() or None, leave=False, total=0)
        self._next = 0.1

    def __call__(self, done: int, total: int) -> None:
        if not self._bar.disable:
            self._bar.total = total
            self._bar.update(done - self._bar.n)
            if done >= total:
                self._bar.close()
        elif total and done / total >= self._next:
            LOG.info("  %d/%d %s", done, total, self._unit)
            self._next = done / total + 0.1
