"""Where the checkout's files are."""

from pathlib import Path

import photozhpc

ROOT = Path(__file__).parents[2]
DATA = ROOT / "tests" / "data"
CONFIGS = Path(photozhpc.__file__).parent / "configs"
