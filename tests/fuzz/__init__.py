"""Random plans on random models, against a reference that shares no code with fxprune."""
