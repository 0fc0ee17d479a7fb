"""What a finished network is worth: accuracy under attack, and tables of it."""
