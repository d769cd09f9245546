"""Simulated skies of the tests."""

from dataclasses import replace
from typing import Any

from photozhpc.sky.sky_config import Ingredients, load_sky_config

SIMPLE = load_sky_config("sky/simple")


def only(**ingredients: Any) -> Ingredients:
    """Return these ingredients and no others."""
    return replace(SIMPLE.ingredients, **ingredients)
