"""Tests of ``fxprune.proof``."""
