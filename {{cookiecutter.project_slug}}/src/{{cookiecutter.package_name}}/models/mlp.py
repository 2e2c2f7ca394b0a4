"""`model=mlp`: linear layers, each followed by LayerNorm, ReLU and Dropout."""

import math

from torch import Tensor, nn

from ..engine import DataSpec, Segments


class MLP(nn.Module):
    """Normalised input `(B, ...)`, flattened, to logits `(B, K)`."""

    def __init__(self, spec: DataSpec, widths: list[int], dropout: float, checkpoint_segments: int = 0) -> None:
        super().__init__()
        features = math.prod(spec.input_shape)
        layers: list[nn.Module] = [nn.Flatten()]
        for width in widths:
            layers += [nn.Linear(features, width), nn.LayerNorm(width), nn.ReLU(), nn.Dropout(dropout)]
            features = width
        layers.append(nn.Linear(features, spec.num_outputs))
        self.layers = Segments(layers, checkpoint_segments)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.layers(x)
        return logits
