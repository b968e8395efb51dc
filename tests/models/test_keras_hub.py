"""Models of keras-hub, made small from their configurations: what is shared, saved, exported and run."""

import keras
import numpy as np
import pytest

import keras_qareg as qareg
from keras_qareg.regularizers import NearestSquared
from tests.helpers import arrays, error_of, tensorflow_only

pytestmark = pytest.mark.slow
TOKENS = np.arange(1, 7, dtype="int32")[None]
IMAGES = np.random.default_rng(0).normal(size=(1, 16, 16, 3)).astype("float32")
SMALL = {"vocabulary_size": 50, "num_layers": 1, "hidden_dim": 16, "intermediate_dim": 32}


@pytest.fixture(scope="module")
def hub():
    return pytest.importorskip("keras_hub").models


def tokens(*names):
    return {
        name: np.ones_like(TOKENS)
        if name.endswith("mask")
        else TOKENS % (2 if "seg" in name else 9)
        for name in names
    }


def t5(hub):
    names = [
        f"{side}_{part}"
        for side in ("encoder", "decoder")
        for part in ("token_ids", "padding_mask")
    ]
    return hub.T5Backbone(**SMALL, num_heads=2, key_value_dim=8), tokens(*names)


def bert(hub):
    model = hub.BertBackbone(**SMALL, num_heads=2, max_sequence_length=8)
    return model, tokens("token_ids", "segment_ids", "padding_mask")


def _decoder(hub, kind, **settings):
    heads = {"num_query_heads": 2, "num_key_value_heads": 1}
    backbone = getattr(hub, f"{kind}Backbone")(**SMALL, **heads, **settings)
    model = getattr(hub, f"{kind}CausalLM")(backbone=backbone, preprocessor=None)
    return model, tokens("token_ids", "padding_mask")


def gemma(hub):
    return _decoder(hub, "Gemma", head_dim=8)


def llama(hub):
    return _decoder(hub, "Llama")


def _classifier(hub, kind, **settings):
    backbone = getattr(hub, f"{kind}Backbone")(image_shape=(16, 16, 3), **settings)
    return getattr(hub, f"{kind}ImageClassifier")(backbone=backbone, num_classes=3), IMAGES


def resnet(hub):
    return _classifier(
        hub,
        "ResNet",
        input_conv_filters=[64],
        input_conv_kernel_sizes=[3],
        stackwise_num_filters=[64, 64],
        stackwise_num_blocks=[1, 1],
        stackwise_num_strides=[1, 2],
        block_type="basic_block",
    )


def mobilenet(hub):
    return _classifier(
        hub,
        "MobileNet",
        stackwise_expansion=[[8], [16]],
        stackwise_num_blocks=[1, 1],
        stackwise_num_filters=[[8], [8]],
        stackwise_kernel_size=[[3], [3]],
        stackwise_num_strides=[[1], [2]],
        stackwise_se_ratio=[[0.25], [None]],
        stackwise_activation=[["relu"], ["hard_swish"]],
        stackwise_padding=[[1], [1]],
        output_num_filters=16,
        input_num_filters=8,
        input_activation="hard_swish",
        output_activation="hard_swish",
        last_layer_filter=16,
        depthwise_filters=8,
        depthwise_stride=1,
        depthwise_residual=True,
        squeeze_and_excite=None,
    )


def vit(hub):
    settings = {"num_layers": 1, "num_heads": 2, "hidden_dim": 16, "mlp_dim": 32}
    return _classifier(hub, "ViT", patch_size=8, **settings)


def assert_equal(model, other, inputs):
    for one, two in zip(*(keras.tree.flatten(m(inputs)) for m in (model, other)), strict=True):
        np.testing.assert_array_equal(*arrays(one, two))


def generated(model):
    mask = np.array([[1, 1, 0, 0, 0, 0]], "int32")
    found = model.generate({"token_ids": TOKENS, "padding_mask": mask}, stop_token_ids=None)
    return np.asarray(found["token_ids"]).tolist()


@pytest.mark.parametrize("make", [t5, bert, gemma, resnet, mobilenet])
def test_models_are_transformed(make, hub, tmp_path):
    keras.utils.set_random_seed(0)
    model, inputs = make(hub)
    assert_equal(qareg.strip(model), model, inputs)
    assert_equal(qareg.strip(qareg.quantization_aware(model, NearestSquared(4))), model, inputs)
    shared = qareg.share_weights(model, levels=4)
    paths = [weight.path for weight in model.weights]
    # T5 has two kernels of one path, of which one gets a number.
    assert {path.removesuffix("_1") for path in qareg.codebooks(shared)} <= {
        *paths,
        *(p.removesuffix("_1") for p in paths),
    }
    plain = qareg.strip(shared)
    mine, _ = make(hub)
    qareg.strip(shared, into=mine)
    for other in (plain, mine):
        assert type(other) is type(model)
        assert_equal(other, shared, inputs)
        other.save(tmp_path / "model.keras")
        assert_equal(keras.saving.load_model(tmp_path / "model.keras"), shared, inputs)
    for other in (plain, mine, shared):
        file = qareg.export.save_archive(other, tmp_path / "model.qareg")
        assert_equal(qareg.export.load_archive(file), shared, inputs)
        assert qareg.export.verify(shared, file).startswith("equal")
    if hasattr(model, "generate"):
        assert generated(plain) == generated(mine) == generated(shared)
    assert "to have its changed layers in its configuration" in error_of(
        lambda: shared.save(tmp_path / "shared.keras")
    )


@pytest.mark.parametrize("make", [resnet, mobilenet])
def test_convolutional_networks_are_converted(make, hub):
    model, inputs = make(hub)
    converted = qareg.wnq(model, bits=2)
    assert_equal(qareg.strip(converted), converted, inputs)


@pytest.mark.parametrize("make", [llama, vit])
def test_what_cannot_be_made_again_is_named_and_written_as_it_is(make, hub, tmp_path):
    model, inputs = make(hub)
    for transform in (qareg.strip, lambda model: qareg.share_weights(model, levels=4)):
        assert "to be made again from its configuration. Received: " in error_of(
            lambda transform=transform: transform(model)
        )
    file = qareg.export.save_archive(model, tmp_path / "model.qareg")
    assert_equal(qareg.export.load_archive(file), model, inputs)
    assert qareg.export.verify(model, file).startswith("equal")
    assert "total" in str(qareg.report.summary(model))


@tensorflow_only
@pytest.mark.parametrize("make", [bert, gemma, llama, mobilenet, vit])
def test_models_are_exported(make, hub, tmp_path):
    model, inputs = make(hub)
    if make not in (llama, vit):
        model = qareg.share_weights(model, levels=4)
    shape = dict.fromkeys(inputs, (6,)) if isinstance(inputs, dict) else None
    qareg.export.litert(model, tmp_path / "model.tflite", "smallest", input_shape=shape)
    assert qareg.export.verify(model, tmp_path / "model.tflite").startswith("equal")


@tensorflow_only
def test_a_classifier_becomes_full_integer(hub, tmp_path):
    backbone = hub.ResNetBackbone(
        input_conv_filters=[64],
        input_conv_kernel_sizes=[3],
        stackwise_num_filters=[64],
        stackwise_num_blocks=[2],
        stackwise_num_strides=[1],
        block_type="basic_block",
        image_shape=(16, 16, 3),
    )
    model = hub.ResNetImageClassifier(backbone=backbone, num_classes=5, activation="softmax")
    images = np.random.default_rng(0).normal(size=(32, 16, 16, 3)).astype("float32")
    qareg.recalibrate(model, images)
    with pytest.warns(
        UserWarning, match="is a ResNetImageClassifier; the new one is a keras.Model"
    ):
        quantized = qareg.quantize_activations(model, images)
    report = qareg.export.litert(quantized, tmp_path / "m.tflite", "int8")
    assert report.agreement.steps <= 4 and report.agreement.equal > 0.5
