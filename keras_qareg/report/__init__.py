"""What quantization made of a model: numbers of each kernel as a table, and all of it as a page."""

from keras_qareg.report.page import html
from keras_qareg.summaries import Row, Summary, summary, table

__all__ = ["Row", "Summary", "html", "summary", "table"]
