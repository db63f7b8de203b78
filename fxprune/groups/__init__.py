"""Stage 3: coupled structures, from the axes and from the papers' dependency rules."""
