"""Tests of ``fxprune.axes``."""
