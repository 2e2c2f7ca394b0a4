"""Callbacks: checkpoints within an epoch, preemption, the NaN guard, micro-batches and monitoring."""
