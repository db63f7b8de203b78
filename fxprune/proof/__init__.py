"""Proof: the smaller model computes what the original does without the removed units."""
