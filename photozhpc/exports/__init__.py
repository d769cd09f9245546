"""The catalogue in the formats and words of other tools."""
