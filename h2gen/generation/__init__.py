"""A session turns settings into a picture."""
