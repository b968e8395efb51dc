"""Figures: kernels and their centroids, penalties, accuracy and loss against size. Needs matplotlib.

`plots.style` is how they look; figures of your own may use it.
"""

from keras_qareg.plots import style
from keras_qareg.plots.curves import accuracy_size, penalty_curves, plan
from keras_qareg.plots.histograms import weight_histograms

__all__ = ["accuracy_size", "penalty_curves", "plan", "style", "weight_histograms"]
