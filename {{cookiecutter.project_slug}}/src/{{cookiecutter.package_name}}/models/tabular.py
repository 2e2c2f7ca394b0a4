"""`model=mlp` for tables: columns become features of about the same scale, which linear layers take."""

import torch
from torch import Tensor, nn

from ..engine import DataSpec, Segments, UserError

MAX_DIMENSIONS = 50  # of an embedding


class Columns(nn.Module):
    """Normalised rows `(B, C)`, with NaN for gaps and codes of categories, to features `(B, num_features)`.

    A missing number becomes 0, the mean, and a second feature marks the gap if the column had gaps in training. A
    category becomes a row of an embedding (Guo and Berkhahn, 2016, arXiv:1604.06737); that of code 0, unseen or
    missing, is initialised with zeros.
    """

    has_constant_buffers = True  # ddp need not send them

    numeric: Tensor
    gaps: Tensor
    categorical: Tensor
    num_codes: Tensor

    def __init__(self, spec: DataSpec) -> None:
        super().__init__()
        if not spec.columns:
            raise UserError(f"the network takes tables, and the data says nothing of its columns: {spec.input_shape}.")
        numeric = [number for number, column in enumerate(spec.columns) if column["categories"] is None]
        categorical = [number for number in range(len(spec.columns)) if number not in numeric]
        gaps = [number for number in numeric if spec.columns[number]["gaps"]]
        num_codes = [1 + len(spec.columns[number]["categories"]) for number in categorical]
        self.num_numeric, self.num_gaps = len(numeric), len(gaps)
        self.embeddings, self.num_features = nn.ModuleList(), len(numeric) + len(gaps)
        for size in num_codes:
            embedding = nn.Embedding(size, min(MAX_DIMENSIONS, (size + 1) // 2))
            nn.init.zeros_(embedding.weight.data[0])
            self.embeddings.append(embedding)
            self.num_features += embedding.embedding_dim
        buffers = {"numeric": numeric, "gaps": gaps, "categorical": categorical, "num_codes": num_codes}
        for name, values in buffers.items():
            self.register_buffer(name, torch.tensor(values, dtype=torch.long), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        features = []
        if self.num_numeric:
            numbers = x.index_select(1, self.numeric)
            features.append(torch.where(torch.isnan(numbers), 0, numbers))
        if self.num_gaps:
            features.append(torch.isnan(x.index_select(1, self.gaps)).to(x.dtype))
        if len(self.embeddings):
            codes = x.index_select(1, self.categorical)
            codes = torch.where((codes >= 0) & (codes < self.num_codes), codes, 0).long()  # any other code is unseen
            features += [embedding(code) for embedding, code in zip(self.embeddings, codes.unbind(1), strict=True)]
        return torch.cat(features, dim=1)


class TabularMLP(nn.Module):
    """Normalised rows `(B, C)` to logits `(B, K)`: linear layers, each followed by LayerNorm, ReLU and Dropout."""

    def __init__(self, spec: DataSpec, widths: list[int], dropout: float, checkpoint_segments: int = 0) -> None:
        super().__init__()
        self.columns = Columns(spec)
        features = self.columns.num_features
        layers: list[nn.Module] = []
        for width in widths:
            layers += [nn.Linear(features, width), nn.LayerNorm(width), nn.ReLU(), nn.Dropout(dropout)]
            features = width
        layers.append(nn.Linear(features, spec.num_outputs))
        self.layers = Segments(layers, checkpoint_segments)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.layers(self.columns(x))
        return logits
