"""The network as it is deployed: raw input in, logits and probabilities out."""

import torch
from torch import Tensor, nn

from ..models.classifier import Classifier


class DeployedNetwork(nn.Module):
    """Raw input `(B, *spec.input_shape)` to logits and probabilities, both `(B, K)` float32."""

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.net = classifier.net

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.net(x)
        return logits, logits.softmax(dim=1)


def deployed(classifier: Classifier) -> DeployedNetwork:
    """In inference mode on the CPU, in float32, without gradients."""
    network = DeployedNetwork(classifier).to(device="cpu", dtype=torch.float32).eval()
    return network.requires_grad_(False)
