"""Questions about speed and quality, answered by measuring."""
