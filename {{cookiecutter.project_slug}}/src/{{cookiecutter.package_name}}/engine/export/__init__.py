"""From a checkpoint to a verified bundle: formats, the gate, the manifest and the model card."""
