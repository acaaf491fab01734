"""Any other classifier: told how to read it, taken out of a wrapper, or refused with advice."""

from __future__ import annotations

import copy
import logging
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import infodisent
from infodisent.backbones import hub
from infodisent.backbones.torchvision_import import ensure_torchvision

ensure_torchvision()
import timm  # noqa: E402
import torchvision  # noqa: E402

from tests.backbones.models import images  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:attach. .*(what builds|normalised)")


class Own(nn.Module):
    """Somebody's network: a map, an average, a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3, 4), nn.ReLU(), nn.Conv2d(8, 12, 3, 4), nn.ReLU()
        )
        self.fc = nn.Linear(12, 7)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.body(x).mean((2, 3)))


class Tokens(nn.Module):
    """A transformer in outline: one class token, then the patches."""

    def __init__(self, image_size: int = 64) -> None:
        super().__init__()
        self.image_size = image_size
        self.embed = nn.Conv2d(3, 16, 8, 8)
        self.token = nn.Parameter(torch.ones(1, 1, 16))
        self.block = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.head = nn.Linear(16, 5)

    def tokens(self, x: Tensor) -> Tensor:
        x = self.embed(x).flatten(2).mT
        return self.block(torch.cat([self.token.expand(len(x), -1, -1), x], 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.tokens(x)[:, 0])


class Wrapper(nn.Module):
    def __init__(self, model: nn.Module, scale: float = 1.0, name: str = "model") -> None:
        super().__init__()
        self.inner, self.scale = name, scale
        setattr(self, name, model)
        self.loss = nn.CrossEntropyLoss()

    def forward(self, x: Tensor) -> Tensor:
        return getattr(self, self.inner)(x * self.scale)


def resnet() -> nn.Module:
    return timm.create_model("test_resnet", num_classes=5).eval()


@torch.no_grad()
def test_a_submodule_is_the_map() -> None:
    net = Own()
    model = infodisent.attach(net, 3, features="body", logits=lambda m, f: m.fc(f.mean((2, 3))))
    x = images(64)
    assert torch.equal(model.forward_features(x), net.body(x))
    assert torch.equal(model.original_logits(x), net(x))
    assert model.backbone.num_classes == 7
    assert model(x).shape == (2, 3)
    assert model.backbone.trained
    assert not infodisent.attach(net, 3, features=lambda m, x: m.body(x)).backbone.num_classes
    clone = copy.deepcopy(model)
    assert torch.equal(clone(x), model(x))
    with pytest.raises(ValueError, match="no classifier of its own"):
        infodisent.attach(net, 3, features="body").original_logits(x)


@torch.no_grad()
def test_tokens_with_a_prefix() -> None:
    net = Tokens()
    model = infodisent.attach(
        net,
        3,
        features=lambda m, x: m.tokens(x),
        logits=lambda m, t: m.head(t[:, 0]),
        num_prefix_tokens=1,
    )
    assert (model.input_fmt, model.num_prefix_tokens) == ("NLC", 1)
    assert model.grid_size(64) == (8, 8)
    model.eval()
    torch.testing.assert_close(model.original_logits(images(64)), net.eval()(images(64)))
    with pytest.raises(ValueError, match=r"65 tokens less 0 .* pass num_prefix_tokens=1 if"):
        infodisent.attach(net, 3, features="block")


def test_what_is_told_wrongly_is_refused() -> None:
    net = Own()
    last = lambda m, x: m.body(x).movedim(1, -1)  # noqa: E731
    for error, message, options in [
        (
            ValueError,
            "its stages in order is not what",
            {"logits": lambda m, f: m.fc(f.amax((2, 3)))},
        ),
        (ValueError, "no such submodule; it has body", {"features": "layer4"}),
        (ValueError, "logits is 'head', but Own has no such submodule", {"logits": "head"}),
        (
            ValueError,
            r"features of Own give \(1, 12\)",
            {"features": lambda m, x: m.body(x).mean((2, 3))},
        ),
        (ValueError, "give a list, where a map", {"features": lambda m, x: [m.body(x)]}),
        (
            ValueError,
            r"features of Own fail for images \(1, 3, 224, 224\)",
            {"features": lambda m, x: m.no(x)},
        ),
        (
            ValueError,
            "looks like .B, H, W, C.: pass input_fmt='NHWC'",
            {"features": lambda m, x: m.body(x)[:, :, :12, :12].movedim(1, -1)[:, :6, :6]},
        ),
        (ValueError, "input_fmt is 'NCWH'", {"input_fmt": "NCWH"}),
    ]:
        with pytest.raises(error, match=message):
            infodisent.attach(net, 3, **{"features": "body", **options})
    assert infodisent.attach(net, 3, features=last, input_fmt="NHWC").num_features == 12
    for option in ("logits", "input_fmt", "num_prefix_tokens"):
        with pytest.raises(TypeError, match=f"{option} comes from the backbone"):
            infodisent.attach(resnet(), 3, **{option: 1})


def test_a_model_that_cannot_be_read_is_told_how() -> None:
    with pytest.raises(ValueError, match=r"features='body'\), the submodule .* InfoDisentHead"):
        infodisent.attach(Own(), 3)
    trunk = nn.Sequential(*list(torchvision.models.shufflenet_v2_x0_5().children())[:-1])
    with pytest.raises(ValueError, match=r"features=lambda m, x: m\(x\)\)"):
        infodisent.attach(trunk, 3)
    assert infodisent.attach(trunk, 3, features="").num_features == 1024
    with pytest.raises(ValueError, match="has no parameters"):
        infodisent.attach(nn.Identity(), 3)
    with pytest.raises(ValueError, match=r"choose one of them: attach\(model, K, features="):
        infodisent.attach(timm.create_model("coat_tiny"), 3)


@torch.no_grad()
def test_lists_of_maps_by_the_advice() -> None:
    net = timm.create_model("test_resnet", features_only=True)
    model = infodisent.attach(net, 3, features=lambda m, x: m(x)[-1])
    assert model(images(64)).shape == (2, 3)


@pytest.mark.parametrize(
    "wrap",
    [
        nn.DataParallel,
        torch.compile,
        lambda m: Wrapper(m),
        lambda m: Wrapper(m, name="backbone"),
        lambda m: nn.DataParallel(Wrapper(Wrapper(m), name="net")),
        lambda m: Wrapper(torch.compile(m)),
        lambda m: torch.optim.swa_utils.AveragedModel(m),
        lambda m: timm.utils.ModelEmaV3(m),
    ],
)
@torch.no_grad()
def test_wrappers_that_pass_images_on(wrap: Any) -> None:
    net = resnet()
    model = infodisent.attach(wrap(net), 3)
    assert type(model.backbone.model) is type(net)
    assert torch.equal(model.original_logits(images(64)), net(images(64)))
    assert model.spec["name"] == "test_resnet"


def test_wrappers_that_do_more_are_named() -> None:
    with pytest.raises(
        ValueError, match=r"holds ResNet but computes something else .*pass model\.model"
    ):
        infodisent.attach(Wrapper(resnet(), scale=2.0), 3)
    two = Wrapper(resnet())
    two.teacher = resnet()
    with pytest.raises(
        ValueError, match=r"2 classifiers: pass one of them: model.model, model.teach"
    ):
        infodisent.attach(two, 3)

    class Broken(Wrapper):
        def forward(self, x: Tensor) -> Tensor:
            raise RuntimeError("needs two inputs")

    with pytest.raises(
        ValueError, match=r"its forward pass fails: needs two inputs: pass model\.model"
    ):
        infodisent.attach(Broken(resnet()), 3)


@torch.no_grad()
def test_dense_features_as_torch_hub_has_them() -> None:
    class Dense(Tokens):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Identity()

        def forward_features(self, x: Tensor) -> dict[str, Tensor]:
            tokens = self.tokens(x)
            return {"x_norm_clstoken": tokens[:, 0], "x_norm_patchtokens": tokens[:, 1:]}

    net = Dense()
    model = infodisent.attach(net, 3).eval()
    assert (model.input_fmt, model.num_prefix_tokens, model.backbone.num_classes) == ("NLC", 0, 0)
    want = net.tokens(images(64))[:, 1:]
    torch.testing.assert_close(model.forward_features(images(64)), want)


@torch.no_grad()
def test_classifiers_that_return_probabilities_and_logits() -> None:
    class Classify(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.pool = nn.Conv2d(8, 16, 1), nn.AdaptiveAvgPool2d(1)
            self.drop, self.linear = nn.Dropout(0.0), nn.Linear(16, 4)

        def forward(self, x: Tensor) -> Any:
            logits = self.linear(self.drop(self.pool(self.conv(x)).flatten(1)))
            return logits if self.training else (logits.softmax(1), logits)

    class ClassificationModel(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = nn.Sequential(nn.Conv2d(3, 8, 8, 8), nn.ReLU(), Classify())
            self.names = dict(enumerate("abcd"))

        def forward(self, x: Tensor) -> Any:
            return self.model(x)

    net = ClassificationModel()
    for given in (net, Wrapper(net, name="net")):
        model = infodisent.attach(given, 3).eval()
        assert model.backbone.class_names == tuple("abcd")
        assert model.pretrained_cfg["std"] == (1.0, 1.0, 1.0)
        assert torch.equal(model.original_logits(images(64)), net(images(64))[1])


@torch.no_grad()
def test_towers_that_return_tokens_on_request() -> None:
    class Tower(Tokens):
        output_tokens, pool_type, image_mean = False, "tok", (0.4, 0.5, 0.6)

        def forward(self, x: Tensor) -> Any:
            tokens = self.tokens(x)
            return (tokens[:, 0], tokens[:, 1:]) if self.output_tokens else tokens[:, 0]

    net = Tower().eval()
    model = infodisent.attach(net, 3)
    assert model.pretrained_cfg["mean"] == (0.4, 0.5, 0.6)
    torch.testing.assert_close(model.forward_features(images(64)), net.tokens(images(64))[:, 1:])
    assert not net.output_tokens
    whole = Wrapper(net, scale=3.0, name="visual")
    with pytest.raises(ValueError, match=r"pass model\.visual"):
        infodisent.attach(whole, 3)


def test_an_assumed_normalisation_is_said() -> None:
    with pytest.warns(
        UserWarning, match=r"Own does not say how .*ImageNet's mean and std are used"
    ):
        infodisent.attach(Own(), 3, features="body")


@torch.no_grad()
def test_attaching_again_uses_the_backbone() -> None:
    first = infodisent.attach("test_resnet", 3)
    second = infodisent.attach(first, 5, bias=True)
    assert second.backbone is first.backbone
    assert second(images(64)).shape == (2, 5)
    assert infodisent.attach(first.backbone).num_classes == 1000
    with pytest.raises(ValueError, match="the given model has one"):
        infodisent.attach(first, 3, features="layer4")


def test_random_weights_and_names_of_classes_are_known() -> None:
    assert not infodisent.attach("test_resnet", 3).backbone.trained
    model = infodisent.attach(resnet(), 3)
    assert model.backbone.trained
    assert model.backbone.class_names is None
    net = resnet()
    net.pretrained_cfg = {**net.pretrained_cfg, "label_names": list("abcde")}
    assert infodisent.attach(net, 3).backbone.class_names == tuple("abcde")


def test_a_hub_that_does_not_answer_is_asked_once(monkeypatch: Any, caplog: Any) -> None:
    constants = pytest.importorskip("huggingface_hub.constants", reason="no hub client")
    calls: list[bool] = []
    monkeypatch.setattr(hub, "_answers", lambda: bool(calls.append(True)))
    before = bool(constants.HF_HUB_OFFLINE)
    with caplog.at_level(logging.INFO), pytest.raises(ValueError) as caught:
        infodisent.attach("test_resnet", 3, pretrained=True)
    assert "the model hub does not answer and they are not in the local cache" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert calls == [True]
    assert not caplog.records
    assert bool(constants.HF_HUB_OFFLINE) is before
    with pytest.raises(ValueError, match="give a local folder"):
        infodisent.attach("hf-hub:somebody/something", 3)


def test_the_second_argument_of_timms_reset() -> None:
    model = infodisent.attach("test_resnet", 3)
    model.reset_classifier(4, "avg")
    model.reset_classifier(num_classes=5, global_pool=None)
    assert model(images(64)).shape == (2, 5)
