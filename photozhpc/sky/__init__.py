"""A simulated Roman sky, written as real L3 mosaics."""

from photozhpc.sky.simulate import simulate_sky
from photozhpc.sky.sky_config import SkyConfig, load_sky_config

__all__ = ["SkyConfig", "load_sky_config", "simulate_sky"]
