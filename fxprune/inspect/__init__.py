"""To look at a model: its groups, what they can take, pictures and pages."""
