"""Stage 2: what every tensor axis is made of, by unification along the graph."""
