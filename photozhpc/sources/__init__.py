"""Source lists: the tables that hold a survey's sources, and the meaning of their columns."""
