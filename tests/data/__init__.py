"""Tests of ``fxprune.data``."""
