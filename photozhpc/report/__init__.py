"""Evaluation, tables and figures."""

from photozhpc.report.run_report import summarise
from photozhpc.report.zz import plot_zz

__all__ = ["plot_zz", "summarise"]
