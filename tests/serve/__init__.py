"""Tests of ``fxprune.serve``."""
