"""Tests of ``fxprune.hf.open``."""
