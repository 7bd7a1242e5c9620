"""The public face: load an exported model, score images with it, fit a new one.

`load` needs no torch. `fit` and `Fitted` import the packages of training when they are called.
"""

from anomaly.api.fitted import Fitted, fit
from anomaly.api.model import Model, load
from anomaly.api.result import Result

__all__ = ["Fitted", "Model", "Result", "fit", "load"]
