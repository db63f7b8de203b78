"""Tests of ``fxprune.ops``."""
