"""Files: what leaves Python. Nothing here is imported until it is used."""

from keras_qareg.export.litert import ExportReport, litert

__all__ = ["ExportReport", "litert"]
