"""Mosaics and source lists -> a store; mosaics alone -> a source list."""
