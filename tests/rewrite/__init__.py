"""Tests of ``fxprune.rewrite``."""
