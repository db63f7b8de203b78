"""The same class of transformers, smaller."""
