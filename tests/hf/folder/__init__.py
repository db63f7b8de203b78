"""Tests of ``fxprune.hf.folder``."""
