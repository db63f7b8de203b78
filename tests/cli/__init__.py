"""Tests of ``fxprune.cli``."""
