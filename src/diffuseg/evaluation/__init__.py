"""Metrics, statistics and what people look at."""
