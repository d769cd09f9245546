"""A catalogue against known redshifts: statistics, tables and figures."""

from photozhpc.evaluation.evaluate import Evaluation, evaluate
from photozhpc.evaluation.figure_style import save_figure
from photozhpc.evaluation.summary import summarise
from photozhpc.evaluation.tables import evaluation_document, evaluation_table, write_evaluation
from photozhpc.evaluation.zz import plot_zz

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
