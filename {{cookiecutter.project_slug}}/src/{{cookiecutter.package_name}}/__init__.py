"""Train, evaluate, export and verify a PyTorch Lightning model."""
