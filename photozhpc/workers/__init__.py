"""The processes that do the work: on this machine, in Slurm jobs, or of a Dask scheduler."""
