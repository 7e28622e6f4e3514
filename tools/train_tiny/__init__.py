"""How the bundled model is made: data, autoencoder, training, evaluation. ``python -m tools.train_tiny --help``."""
