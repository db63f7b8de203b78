"""Tests of ``fxprune.trace``."""
