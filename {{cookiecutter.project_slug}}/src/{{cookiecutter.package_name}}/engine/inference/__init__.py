"""What runs where the model is used: neither torch nor lightning is imported here."""
