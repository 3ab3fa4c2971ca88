"""What trains the judge of the shapes world (``scripts/train_preference.py``): pairs of better and worse pictures."""
