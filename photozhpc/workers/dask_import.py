"""Imports Dask in the process that forks its workers.

That process passes over an ImportError and nothing else. A fault in the user's Dask files is met,
and told, by the client as well.
"""

try:
    import distributed  # noqa: F401
except Exception as error:
    raise ImportError(str(error)) from error
