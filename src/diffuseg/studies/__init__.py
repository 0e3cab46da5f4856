"""What one asks of a trained model on a data set: quality and cost, calibration, raters, controls, pseudo-labels."""
