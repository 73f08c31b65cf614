"""How good a prompt is: scores of rows, metrics, intervals, tables and charts.

Knows nothing of training or the command line.
"""

from typing import TYPE_CHECKING

from ptuning.lazy import lazily

if TYPE_CHECKING:
    from ptuning.evaluation.bootstrap import Estimate as Estimate
    from ptuning.evaluation.bootstrap import Measure as Measure
    from ptuning.evaluation.bootstrap import Resampled as Resampled
    from ptuning.evaluation.bootstrap import Scores as Scores
    from ptuning.evaluation.bootstrap import least as least
    from ptuning.evaluation.charts import Bar as Bar
    from ptuning.evaluation.charts import Bars as Bars
    from ptuning.evaluation.charts import Cloud as Cloud
    from ptuning.evaluation.charts import Curves as Curves
    from ptuning.evaluation.charts import Point as Point
    from ptuning.evaluation.charts import Points as Points
    from ptuning.evaluation.classes import class_report as class_report
    from ptuning.evaluation.comparison import Comparison as Comparison
    from ptuning.evaluation.html import STYLE as STYLE
    from ptuning.evaluation.html import cell_html as cell_html
    from ptuning.evaluation.html import pairs_html as pairs_html
    from ptuning.evaluation.html import table_html as table_html
    from ptuning.evaluation.html import token_html as token_html
    from ptuning.evaluation.metrics import Metrics as Metrics
    from ptuning.evaluation.metrics import RowScores as RowScores
    from ptuning.evaluation.predictions import prediction_records as prediction_records
    from ptuning.evaluation.predictions import write_predictions as write_predictions
    from ptuning.evaluation.report import results_report as results_report
    from ptuning.evaluation.scoring import WITH as WITH
    from ptuning.evaluation.scoring import WITHOUT as WITHOUT
    from ptuning.evaluation.scoring import Evaluation as Evaluation
    from ptuning.evaluation.scoring import evaluate as evaluate
    from ptuning.evaluation.scoring import evaluate_rows as evaluate_rows
    from ptuning.evaluation.scoring import score_rows as score_rows
    from ptuning.evaluation.scoring import with_and_without as with_and_without
    from ptuning.evaluation.student import half_width as half_width
    from ptuning.evaluation.table import Table as Table
    from ptuning.evaluation.table import aligned as aligned
    from ptuning.evaluation.written import WrittenMetrics as WrittenMetrics
    from ptuning.evaluation.written import character_f1 as character_f1
    from ptuning.evaluation.written import exact_match as exact_match
    from ptuning.evaluation.written import has_rouge as has_rouge
    from ptuning.evaluation.written import rouge_l as rouge_l

__getattr__, __dir__, __all__ = lazily(
    __name__,
    {
        "bootstrap": ("Estimate", "Measure", "Resampled", "Scores", "least"),
        "charts": ("Bar", "Bars", "Cloud", "Curves", "Point", "Points"),
        "classes": ("class_report",),
        "comparison": ("Comparison",),
        "html": ("STYLE", "cell_html", "pairs_html", "table_html", "token_html"),
        "metrics": ("Metrics", "RowScores"),
        "predictions": ("prediction_records", "write_predictions"),
        "report": ("results_report",),
        "scoring": ("WITH", "WITHOUT", "Evaluation", "evaluate", "evaluate_rows", "score_rows", "with_and_without"),
        "student": ("half_width",),
        "table": ("Table", "aligned"),
        "written": ("WrittenMetrics", "character_f1", "exact_match", "has_rouge", "rouge_l"),
    },
)
