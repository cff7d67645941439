"""The evaluator's network: with the same weights it is PyTorch's ResNet18, forwards, backwards and in training."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dipddpm_jax.networks.resnet18 import ResNet18
from dipddpm_jax.torch_files import read_state
from dipddpm_jax.torch_weights import export_torch, import_torch

NARROW = (8, 16, 24, 32)


def torch_resnet18(widths):
    """torchvision's resnet18, by its names, with the head of the iCLEVR course; written from He et al. 2016."""
    torch = pytest.importorskip("torch")
    nn = torch.nn

    class Block(nn.Module):
        def __init__(self, i, o, stride):
            super().__init__()
            self.conv1, self.bn1 = nn.Conv2d(i, o, 3, stride, 1, bias=False), nn.BatchNorm2d(o)
            self.conv2, self.bn2 = nn.Conv2d(o, o, 3, 1, 1, bias=False), nn.BatchNorm2d(o)
            self.downsample = None
            if stride != 1 or i != o:
                self.downsample = nn.Sequential(nn.Conv2d(i, o, 1, stride, bias=False), nn.BatchNorm2d(o))

        def forward(self, x):
            y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
            return torch.relu(y + (x if self.downsample is None else self.downsample(x)))

    class ResNet(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1, self.bn1 = nn.Conv2d(3, widths[0], 7, 2, 3, bias=False), nn.BatchNorm2d(widths[0])
            self.maxpool, self.avgpool = nn.MaxPool2d(3, 2, 1), nn.AdaptiveAvgPool2d((1, 1))
            inputs = (widths[0], *widths[:3])
            for k, (i, o) in enumerate(zip(inputs, widths)):
                layer = nn.Sequential(Block(i, o, 1 if k == 0 else 2), Block(o, o, 1))
                setattr(self, f"layer{k + 1}", layer)
            self.fc = nn.Sequential(nn.Linear(widths[3], 24), nn.Sigmoid())

        def forward(self, x):
            x = self.maxpool(torch.relu(self.bn1(self.conv1(x))))
            x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
            return self.fc(torch.flatten(self.avgpool(x), 1))

    torch.manual_seed(0)
    model = ResNet()
    with torch.no_grad():  # as if it had been trained: no weight is 0 or 1, and the running statistics are lived
        for name, parameter in model.named_parameters():
            if "bn" in name or "downsample.1" in name:
                parameter.add_(0.3 * torch.randn(parameter.shape))
        for _ in range(20):
            model(torch.rand(8, 3, 32, 32) * 2 - 1)
    return torch, model


def pictures(n=3, height=64, width=64):
    return jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (n, height, width, 3)), jnp.float32)


def template(network):
    return jax.eval_shape(lambda: network.init(jax.random.key(0), jnp.zeros((1, 64, 64, 3))))


@pytest.mark.parametrize("size", [(64, 64), (37, 50)])
def test_it_gives_what_pytorch_gives(size):
    torch, model = torch_resnet18(NARROW)
    network = ResNet18(widths=NARROW)
    variables = import_torch({k: v.numpy() for k, v in model.state_dict().items()}, template(network))
    x = pictures(3, *size)
    with torch.no_grad():
        wanted = model.eval()(torch.tensor(np.asarray(x.transpose(0, 3, 1, 2)))).numpy()
    ours = jax.nn.sigmoid(jax.jit(network.apply)(variables, x))
    np.testing.assert_allclose(ours, wanted, atol=2e-6)
    assert wanted.std(0).max() > 1e-3  # the pictures do matter


def test_gradients_and_running_statistics_are_those_of_pytorch():
    torch, model = torch_resnet18(NARROW)
    network = ResNet18(widths=NARROW)
    state = {k: v.numpy().copy() for k, v in model.state_dict().items()}
    variables = import_torch(state, template(network))
    x, y = pictures(4, 32, 32), np.random.default_rng(1).integers(0, 2, (4, 24)).astype(np.float32)
    out = model.train()(torch.tensor(np.asarray(x.transpose(0, 3, 1, 2))))
    torch.nn.functional.binary_cross_entropy(out, torch.from_numpy(y)).backward()

    @jax.jit
    def gradient(params):
        def loss(params):
            logits, new = network.apply({**variables, "params": params}, x, train=True, mutable=["batch_stats"])
            return jnp.mean(jnp.logaddexp(0, logits) - y * logits), new

        return jax.grad(loss, has_aux=True)(params)

    grads, new = gradient(variables["params"])
    grads = export_torch({"params": grads})
    for name, parameter in model.named_parameters():
        scale = np.abs(parameter.grad.numpy()).max()
        np.testing.assert_allclose(grads[name], parameter.grad.numpy(), atol=1e-3 * scale, err_msg=name)
    ours = export_torch(new)
    for name, buffer in model.named_buffers():
        if "running" in name:
            np.testing.assert_allclose(ours[name], buffer.numpy(), rtol=1e-4, atol=1e-5, err_msg=name)


def test_the_published_size_and_names_fit_the_checkpoint_of_the_course(tmp_path):
    """11,176,512 weights below the head are what torchvision's resnet18 (11,689,512 with 1000 classes) has."""
    torch, model = torch_resnet18((64, 128, 256, 512))
    torch.save({"model": model.state_dict()}, tmp_path / "checkpoint.pth")
    network = ResNet18()
    shapes = template(network)
    sizes = [leaf.size for leaf in jax.tree.leaves(shapes["params"])]
    assert sum(sizes) - 512 * 24 - 24 == 11_689_512 - 513_000
    state = read_state(tmp_path / "checkpoint.pth")
    assert {"conv1.weight", "layer1.0.conv1.weight", "layer2.0.downsample.0.weight", "layer4.1.bn2.running_var",
            "fc.0.weight"} <= set(state)
    variables = import_torch(state, shapes)
    assert model.load_state_dict({k: torch.tensor(v) for k, v in export_torch(variables).items()})
