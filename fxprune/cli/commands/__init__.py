"""What can be typed: one file a command, light to import, for ``--help`` answers at once."""
