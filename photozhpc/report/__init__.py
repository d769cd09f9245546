"""Evaluation, tables and figures."""

from photozhpc.report.evaluate import Evaluation, evaluate
from photozhpc.report.evaluation_report import (
    evaluation_document,
    evaluation_table,
    write_evaluation,
)
from photozhpc.report.summary import summarise
from photozhpc.report.zz import plot_zz, save_figure

__all__ = [
    "Evaluation",
    "evaluate",
    "evaluation_document",
    "evaluation_table",
    "plot_zz",
    "save_figure",
    "summarise",
    "write_evaluation",
]
