"""Calibration data and losses: what a model is run on, and what it is judged by."""
