"""Arrays in, numbers out: metrics, calibration, intervals, tests."""
