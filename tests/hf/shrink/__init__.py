"""Tests of ``fxprune.hf.shrink``."""
