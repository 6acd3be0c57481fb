"""The network of the demo's foreign endpoint: a ResNet18 (He et al. 2016), as its owner wrote it."""

from torch import Tensor, nn


class Block(nn.Module):
    """Two convolutions and a shortcut."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.BatchNorm2d(after)
        self.conv2, self.bn2 = nn.Conv2d(after, after, 3, 1, 1, bias=False), nn.BatchNorm2d(after)
        self.downsample = nn.Sequential()
        if before != after:
            shortcut = nn.Conv2d(before, after, 1, stride, bias=False)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(after))

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        return (out + self.downsample(x)).relu()


class Signs(nn.Module):
    """Four stages of two blocks, and a linear layer."""

    def __init__(self, classes: int, width: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, width, 7, 2, 3, bias=False), nn.BatchNorm2d(width)
        self.pool = nn.MaxPool2d(3, 2, 1)
        for i, channels in enumerate([width, width, 2 * width, 4 * width], 1):
            after = width << (i - 1)
            stage = nn.Sequential(Block(channels, after, 1 if i == 1 else 2), Block(after, after, 1))
            setattr(self, f"layer{i}", stage)
        self.fc = nn.Linear(8 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.bn1(self.conv1(x)).relu())
        for i in range(1, 5):
            x = getattr(self, f"layer{i}")(x)
        logits: Tensor = self.fc(x.mean((2, 3)))
        return logits
