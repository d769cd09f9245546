"""The sections of RESULTS.md, by subject."""
