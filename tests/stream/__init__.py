"""Tests of ``fxprune.stream``."""
