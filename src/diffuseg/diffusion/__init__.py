"""Mathematics only: schedules, parameterizations, samplers. No network, no data, no training."""
