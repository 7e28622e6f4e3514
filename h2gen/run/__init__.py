"""A request becomes settings, a session turns settings into a picture, and what is saved stays whole."""
