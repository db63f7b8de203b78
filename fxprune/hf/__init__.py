"""Stage 4: transformers models, text and checkpoints. Nothing left of here knows transformers."""
