"""Stage 6: the physically smaller graph, and the proof that it is right."""
