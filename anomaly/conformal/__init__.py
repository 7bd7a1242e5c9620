"""The statistics behind the guarantee: calibration, p-values and the drift monitor."""
