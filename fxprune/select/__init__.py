"""Stage 5: scores and a budget become a plan."""
