"""Source lists: which tables hold the sources of a survey, and what their columns mean."""
