"""Evaluation, tables and figures."""

from photozhpc.report.summary import summarise
from photozhpc.report.zz import plot_zz

__all__ = ["plot_zz", "summarise"]
