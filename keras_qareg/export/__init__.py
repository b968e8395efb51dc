"""Files: what leaves Python. Heavy imports wait until they are used.

What belongs here: a folder for each format, and beside them what formats share: where files go
(`files`), bits in bytes (`packing`), whether a file is a model (`verification`). What does not:
changing a model, which `models` does.
"""

from keras_qareg.export.archive.archive import load_archive, save_archive
from keras_qareg.export.archive.container import ArchiveError
from keras_qareg.export.litert.c_array import CArray, c_array
from keras_qareg.export.litert.convert import litert
from keras_qareg.export.litert.proof import ExportReport
from keras_qareg.export.verification import verify

__all__ = [
    "ArchiveError",
    "CArray",
    "ExportReport",
    "c_array",
    "litert",
    "load_archive",
    "save_archive",
    "verify",
]
