"""What `strategy=single`, `dp` and `ddp` mean here: devices, samplers, the dp strategy and the ddp launcher."""
