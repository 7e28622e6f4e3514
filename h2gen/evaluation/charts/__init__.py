"""Charts as SVG text: what was decided at each step, and what each method gains against what it costs."""

from h2gen.evaluation.charts.decisions import decisions_chart, outcome_of
from h2gen.evaluation.charts.pareto import pareto_chart
from h2gen.evaluation.charts.svg import STYLE

__all__ = ["STYLE", "decisions_chart", "outcome_of", "pareto_chart"]
