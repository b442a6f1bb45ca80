"""Define the student: one trunk, two token streams, one fused cross-attention block, one head.

    faces (B, 1, S, S) -> trunk (B, C, G, G) -> scene tokens and face tokens (B, N, D) each
        -> fused block -> embedding (B, E) -> logits (B, K)

B batch, S image side, G grid side (S / 8), N = G * G tokens, D width, H heads, K classes, Q queries.

The fused block has one of three forms, of equal cost:

    two-way      cross-attention in both directions, a convolution over both, the mean: the teacher's
                 form, narrower; E = D
    perceptron   the same with a perceptron in place of each attention, for an ablation
    queries      a perceptron and a convolution for each stream; Q learned queries ask the tokens of
                 both, and their answers take the place of the mean; E = Q D

Deployed, the trunk is plain 3x3 convolutions with ReLU, as RepVGG's (Ding et al., CVPR 2021). The
sizes are our choice.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True, slots=True)
class StudentConfig:
    """Sizes of a student.

    size: image side in pixels; widths: channels of the first block and of the three stages that
    halve the grid; depths: blocks in those stages; width, heads: of the fused block; pool: "mean" or
    "queries", and how many of these; attend: False replaces each attention by a perceptron of equal
    cost, for an ablation of the two-way form. Raises ValueError where both are asked for.
    """

    classes: int
    size: int = 64
    channels: int = 1
    widths: tuple[int, int, int, int] = (32, 48, 96, 160)
    depths: tuple[int, int, int] = (1, 2, 2)
    width: int = 128
    heads: int = 4
    dropout: float = 0.2
    attend: bool = True
    pool: Literal["mean", "queries"] = "mean"
    queries: int = 4

    def __post_init__(self) -> None:
        if self.pool == "queries" and not self.attend:
            raise ValueError(
                "learned queries are an attention: leave attend True, or pool the mean"
            )

    @property
    def attentions(self) -> int:
        """Return how many attentions, each with one softmax, the network has."""
        if self.pool == "queries":
            return 1
        return 2 if self.attend else 0

    @property
    def embedding_width(self) -> int:
        """Return E, what the head reads."""
        return self.width * self.queries if self.pool == "queries" else self.width


class RepBlock(nn.Module):
    """Convolve with 3x3 + 1x1 + identity branches while training, with one 3x3 when deployed; ReLU.

    The branches are linear and share one BatchNorm, so their kernels are added first: one convolution
    and one pass of statistics a block. Hu et al., "Online Convolutional Re-parameterization", CVPR
    2022. With a BatchNorm a branch, as RepVGG has, an epoch took 1.6 times as long and was not better.
    """

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.stride = stride
        self.wide = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.point = nn.Conv2d(inputs, outputs, 1, stride, 0, bias=False)
        same = inputs == outputs and stride == 1
        self.same = nn.Parameter(torch.ones(inputs)) if same else None
        self.norm = nn.BatchNorm2d(outputs)

    def kernel(self) -> Tensor:
        """Return all branches as one kernel, (O, I, 3, 3)."""
        point = self.point.weight
        if self.same is not None:
            point = point + torch.diag(self.same)[:, :, None, None]
        return self.wide.weight + functional.pad(point, (1, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.norm(functional.conv2d(x, self.kernel(), None, self.stride, 1)))

    @torch.no_grad()
    def merge(self) -> nn.Sequential:
        """Return one convolution with the same outputs in evaluation mode, BatchNorm folded in."""
        conv = nn.Conv2d(
            self.wide.in_channels, self.wide.out_channels, 3, self.stride, 1, bias=True
        )
        norm = self.norm
        assert norm.running_var is not None
        assert norm.running_mean is not None
        gain = norm.weight / torch.sqrt(norm.running_var + norm.eps)
        conv.weight.copy_(self.kernel() * gain[:, None, None, None])
        assert conv.bias is not None
        conv.bias.copy_(norm.bias - norm.running_mean * gain)
        return nn.Sequential(conv, nn.ReLU())


class CrossAttention(nn.Module):
    """Attend from one stream's tokens to the other's, (B, N, D) each -> (B, N, D).

    Written out so that it exports as MatMul and Softmax alone, with the scale inside the query.
    """

    def __init__(self, width: int, heads: int, tokens: int) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"width {width} is not a multiple of {heads} heads")
        self.heads, self.tokens, self.depth = heads, tokens, width // heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        split = (-1, self.tokens, self.heads, self.depth)
        q = (self.query(x) * self.depth**-0.5).reshape(split).transpose(1, 2)  # (B, H, N, D/H)
        k = self.key(context).reshape(split).permute(0, 2, 3, 1)  # (B, H, D/H, N)
        v = self.value(context).reshape(split).transpose(1, 2)  # (B, H, N, D/H)
        attended = torch.softmax(q @ k, dim=-1) @ v  # (B, H, N, D/H)
        joined = attended.transpose(1, 2).reshape(-1, self.tokens, self.heads * self.depth)
        return self.out(joined)  # type: ignore[no-any-return]


class OwnPerceptron(nn.Module):
    """Replace CrossAttention in an ablation: each token reads itself alone, at the same cost.

    Hidden width 2 D + N: 2 N D (2 D + N) = 4 N D^2 + 2 N^2 D multiply-adds.
    """

    def __init__(self, width: int, tokens: int) -> None:
        super().__init__()
        hidden = 2 * width + tokens
        self.body = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, width))

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        return self.body(x)  # type: ignore[no-any-return]


class Fusion(nn.Module):
    """Let two streams attend to each other, then convolve over both on their common grid."""

    def __init__(self, width: int, heads: int, grid: int, attend: bool = True) -> None:
        super().__init__()
        self.grid = grid
        self.scene_norm, self.face_norm = nn.LayerNorm(width), nn.LayerNorm(width)

        def attention() -> CrossAttention | OwnPerceptron:
            if attend:
                return CrossAttention(width, heads, grid * grid)
            return OwnPerceptron(width, grid * grid)

        self.scene_to_face_attention = attention()
        self.face_to_scene_attention = attention()
        self.mix = RepBlock(2 * width, width)

    def forward(self, scene: Tensor, face: Tensor) -> Tensor:
        """Fuse two streams of tokens, (B, N, D) each, into an embedding (B, D)."""
        s, f = self.scene_norm(scene), self.face_norm(face)
        scene = scene + self.scene_to_face_attention(s, f)  # (B, N, D)
        face = face + self.face_to_scene_attention(f, s)  # (B, N, D)
        both = torch.cat([scene, face], dim=2).transpose(1, 2)  # (B, 2D, N)
        fused = self.mix(both.reshape(-1, both.shape[1], self.grid, self.grid))  # (B, D, G, G)
        return fused.mean(dim=(2, 3))  # type: ignore[no-any-return]


class LearnedQueries(nn.Module):
    """Let Q learned queries attend to a face's tokens, (B, N, D) -> (B, Q, D).

    Seeds of attention pooling as in Lee et al., "Set Transformer", ICML 2019. The queries are held as
    the product reads them, with its scale learned too, so that the graph has no work with constants.
    """

    def __init__(self, width: int, heads: int, tokens: int, queries: int) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"width {width} is not a multiple of {heads} heads")
        self.heads, self.tokens, self.queries, self.depth = heads, tokens, queries, width // heads
        # As large as the scaled query of CrossAttention at its start.
        start = torch.randn(1, heads, queries, self.depth) * (3 * self.depth) ** -0.5
        self.query = nn.Parameter(start)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)

    def forward(self, context: Tensor) -> Tensor:
        split = (-1, self.tokens, self.heads, self.depth)
        k = self.key(context).reshape(split).permute(0, 2, 3, 1)  # (B, H, D/H, N)
        v = self.value(context).reshape(split).transpose(1, 2)  # (B, H, N, D/H)
        answers = torch.softmax(self.query @ k, dim=-1) @ v  # (B, H, Q, D/H)
        return answers.transpose(1, 2).reshape(-1, self.queries, self.heads * self.depth)  # type: ignore[no-any-return]


class QueryFusion(nn.Module):
    """Let learned queries ask both streams, which meet in their answers alone.

    It costs what Fusion does but for the head, which is Q times as wide: a convolution for each stream
    in place of one over both, and perceptrons of hidden width D + N - Q:
    4 N D (D + N - Q) + 4 N D^2 + 4 Q N D = 8 N D^2 + 4 N^2 D multiply-adds.
    """

    def __init__(self, width: int, heads: int, grid: int, queries: int) -> None:
        super().__init__()
        self.grid = grid
        self.scene_norm, self.face_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        hidden = width + grid * grid - queries

        def perceptron() -> nn.Sequential:
            return nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, width))

        self.scene_perceptron, self.face_perceptron = perceptron(), perceptron()
        self.scene_mix, self.face_mix = RepBlock(width, width), RepBlock(width, width)
        self.queries = LearnedQueries(width, heads, 2 * grid * grid, queries)

    def forward(self, scene: Tensor, face: Tensor) -> Tensor:
        """Fuse two streams of tokens, (B, N, D) each, into the queries' answers (B, Q D)."""
        scene = scene + self.scene_perceptron(self.scene_norm(scene))  # (B, N, D)
        face = face + self.face_perceptron(self.face_norm(face))  # (B, N, D)
        both = [self._convolve(self.scene_mix, scene), self._convolve(self.face_mix, face)]
        return self.queries(torch.cat(both, dim=1)).flatten(1)  # type: ignore[no-any-return]

    def _convolve(self, block: nn.Module, tokens: Tensor) -> Tensor:
        grid = tokens.transpose(1, 2).reshape(-1, tokens.shape[2], self.grid, self.grid)
        return block(grid).flatten(2).transpose(1, 2)  # type: ignore[no-any-return]


class Student(nn.Module):
    """Classify crops: (B, C, S, S) float32 of 0..255 -> logits (B, K)."""

    # Mean and standard deviation of the grey crops of FER+'s training split; inside the graph, so
    # that no caller can normalise differently.
    MEAN, DEVIATION = 133.0, 61.8

    def __init__(self, config: StudentConfig) -> None:
        super().__init__()
        self.config = config
        stem, one, two, three = config.widths
        blocks = [RepBlock(config.channels, stem)]
        inputs = stem
        for outputs, depth in zip((one, two, three), config.depths, strict=True):
            blocks.append(RepBlock(inputs, outputs, stride=2))
            blocks += [RepBlock(outputs, outputs) for _ in range(depth - 1)]
            inputs = outputs
        self.trunk = nn.Sequential(*blocks)
        self.scene = RepBlock(three, config.width)
        self.face = RepBlock(three, config.width)
        grid = config.size // 8
        self.fusion: Fusion | QueryFusion
        if config.pool == "queries":
            self.fusion = QueryFusion(config.width, config.heads, grid, config.queries)
        else:
            self.fusion = Fusion(config.width, config.heads, grid, config.attend)
        self.dropout = nn.Dropout(config.dropout)
        self.head = nn.Linear(config.embedding_width, config.classes)

    def tokens(self, faces: Tensor) -> tuple[Tensor, Tensor]:
        """Return both streams, (B, N, D) each; token n is the place (n // G, n % G)."""
        x = self.trunk((faces - self.MEAN) / self.DEVIATION)
        scene = self.scene(x).flatten(2).transpose(1, 2)
        face = self.face(x).flatten(2).transpose(1, 2)
        return scene, face

    def embed(self, faces: Tensor) -> Tensor:
        """Return the pooled embedding, (B, E)."""
        return self.fusion(*self.tokens(faces))  # type: ignore[no-any-return]

    def forward(self, faces: Tensor) -> Tensor:
        return self.head(self.dropout(self.embed(faces)))  # type: ignore[no-any-return]


def reparameterise(student: Student) -> Student:
    """Return the deployed form: a copy in evaluation mode, branches merged, with equal outputs."""
    deployed = Student(student.config)
    deployed.load_state_dict(student.state_dict())
    deployed.eval()
    for module in list(deployed.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, RepBlock):
                setattr(module, name, child.merge())
    return deployed


def multiply_adds(student: Student) -> int:
    """Count the multiply-adds of one face, deployed: convolutions, linear layers and attention."""
    total = 0

    def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal total
        if isinstance(module, nn.Conv2d):
            total += output[0].numel() * module.weight[0].numel()
        elif isinstance(module, nn.Linear):
            total += output[0].numel() * module.in_features
        elif isinstance(module, CrossAttention):
            total += 2 * module.tokens**2 * module.heads * module.depth
        elif isinstance(module, LearnedQueries):
            total += 2 * module.queries * module.tokens * module.heads * module.depth

    deployed = reparameterise(student)
    hooks = [module.register_forward_hook(count) for module in deployed.modules()]
    config = student.config
    with torch.no_grad():
        deployed(torch.zeros(1, config.channels, config.size, config.size))
    for hook in hooks:
        hook.remove()
    return total
