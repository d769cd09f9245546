"""A catalogue against known redshifts: statistics, tables and figures."""
