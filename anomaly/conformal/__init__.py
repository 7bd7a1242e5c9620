"""Statistics of the guarantee: calibration, p-values, conformal martingales and the drift monitor."""
