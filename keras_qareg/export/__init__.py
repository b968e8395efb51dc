"""Files: what leaves Python. Heavy imports wait until they are used."""

from keras_qareg.export.archive import ArchiveError, load_archive, save_archive
from keras_qareg.export.litert import litert
from keras_qareg.export.proof import ExportReport
from keras_qareg.export.verification import verify

__all__ = ["ArchiveError", "ExportReport", "litert", "load_archive", "save_archive", "verify"]
