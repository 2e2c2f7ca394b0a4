"""`model=cnn`: convolutions, each followed by GroupNorm and ReLU."""

from torch import Tensor, nn

from ..engine import DataSpec, Segments, UserError


class CNN(nn.Module):
    """Normalised pictures `(B, C, H, W)` to logits `(B, K)`.

    GroupNorm (Wu and He, 2018, arXiv:1803.08494) normalises each sample separately, so that the result does not depend
    on how a batch is split over devices, as it would with BatchNorm.

    The picture is halved after every layer but the first, down to a side of 4.
    """

    def __init__(
        self, spec: DataSpec, widths: list[int], num_groups: int, dropout: float, checkpoint_segments: int = 0
    ) -> None:
        super().__init__()
        if len(spec.input_shape) != 3:
            raise UserError(f"model=cnn takes pictures (C, H, W), and the data has samples of {spec.input_shape}.")
        channels, *sides = spec.input_shape
        layers: list[nn.Module] = []
        for depth, width in enumerate(widths):
            layers += [
                nn.Conv2d(channels, width, kernel_size=3, padding=1, bias=False),
                nn.GroupNorm(num_groups, width),
                nn.ReLU(),
            ]
            if depth > 0 and min(sides) >= 8:
                layers.append(nn.MaxPool2d(2))
                sides = [side // 2 for side in sides]
            channels = width
        self.features = Segments(layers, checkpoint_segments)
        self.head = nn.Sequential(
            nn.Flatten(), nn.Dropout(dropout), nn.Linear(channels * sides[0] * sides[1], spec.num_outputs)
        )

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.features(x))
        return logits
