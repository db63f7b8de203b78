"""transformers models and their configs, read and loaded."""
