"""What earlier versions wrote and chose: it still loads, and the same is chosen."""
