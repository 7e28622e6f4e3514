"""What a command shows in the terminal while it runs, and at its end."""
