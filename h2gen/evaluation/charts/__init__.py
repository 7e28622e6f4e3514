"""Charts as SVG text: the decisions of each step, and speed against fidelity of each method."""

from h2gen.evaluation.charts.decisions import decisions_chart
from h2gen.evaluation.charts.pareto import pareto_chart
from h2gen.evaluation.charts.svg import STYLE

__all__ = ["STYLE", "decisions_chart", "pareto_chart"]
