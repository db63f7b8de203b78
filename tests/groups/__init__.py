"""Tests of ``fxprune.groups``."""
