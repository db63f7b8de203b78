"""Tests of ``fxprune.inspect``."""
