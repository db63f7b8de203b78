"""Pruned models for the engines that serve them, one file an engine."""
