"""The data sets of the examples: local ones, TensorFlow Datasets, batches."""

import io
import zipfile

import keras
import numpy as np
import pytest
from keras import layers

from examples import architectures, data
from tests.helpers import BACKEND

RNG = np.random.default_rng(0)


def write_images(folder):
    """A zip and a folder with two classes of small images."""
    from PIL import Image

    (folder / "pets-test").mkdir()
    with zipfile.ZipFile(folder / "pets-train.zip", "w") as archive:
        for i, kind in enumerate(["cat", "dog", "dog"]):
            content = io.BytesIO()
            Image.fromarray(np.full((6, 6, 3), 80 * i, "uint8")).save(content, "png")
            archive.writestr(f"pets/{kind}/{i}.png", content.getvalue())
            (folder / "pets-test" / kind).mkdir(exist_ok=True)
            (folder / "pets-test" / kind / f"{i}.png").write_bytes(content.getvalue())
    return folder


@pytest.mark.one_backend
def test_folders_and_zips_of_class_folders(tmp_path):
    train, test = data.load("pets", write_images(tmp_path))
    for part in (train, test):
        assert part.images.shape == (3, 6, 6, 3) and part.images.dtype == np.uint8
        assert part.labels.tolist() == [0, 1, 1] and part.classes == 2
    np.testing.assert_allclose(train.mean, np.full(3, 80 / 255), rtol=1e-6)
    pixels = train.pixels(train.mean)
    np.testing.assert_allclose(pixels.mean(axis=(0, 1, 2)), 0, atol=1e-6)
    (tmp_path / "none-train").mkdir()
    (tmp_path / "none-test").mkdir()
    with pytest.raises(ValueError, match="Expected images of one size, in folders by class"):
        data.load("none", tmp_path)


@pytest.mark.one_backend
def test_digits_are_those_of_the_demo():
    train, test = data.load("digits")
    assert (len(train.labels), len(test.labels)) == (1347, 450)
    assert train.images.shape[1:] == data.SHAPES["digits"] and train.images.max() == train.largest
    first, second = train.split(0.2)
    assert (
        len(second.labels) == round(0.2 * 1347) and len(first.labels) + len(second.labels) == 1347
    )
    again = train.split(0.2)[1]
    np.testing.assert_array_equal(again.labels, second.labels)


@pytest.mark.one_backend
@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_data_sets_of_tensorflow_datasets(name):
    tfds = pytest.importorskip("tensorflow_datasets")
    with tfds.testing.mock_data(num_examples=12):
        train, test = data.load(name)
    for part in (train, test):
        assert part.images.shape == (12, *data.SHAPES[name]) and part.images.dtype == np.uint8
        assert part.labels.shape == (12,) and part.classes == int(name.removeprefix("cifar"))


@pytest.mark.one_backend
def test_imagenet_is_read_in_batches():
    tfds = pytest.importorskip("tensorflow_datasets")
    with tfds.testing.mock_data(num_examples=6):
        train, test, classes = data.imagenet(4)
        assert classes == 1000
        for part in (train, test):
            images, labels = next(iter(part))
            assert images.shape == (4, 224, 224, 3) and images.dtype == "float32"
            assert np.abs(np.asarray(images)).max() <= 1.0 and labels.dtype == "int32"


def test_batches_are_what_fit_takes():
    train, _ = data.load("digits")
    mean = train.mean
    for augment in (False, True):
        source = data.batches(train, mean, 64, augment)
        if BACKEND == "tensorflow":
            assert int(source.cardinality()) == 22
            epochs = [[(np.array(x), np.array(y)) for x, y in source] for _ in range(2)]
        else:
            epochs = []
            for _ in range(2):
                epochs.append([source[i] for i in range(len(source))])
                source.on_epoch_end()
        for epoch in epochs:
            labels = np.concatenate([y for _, y in epoch])
            np.testing.assert_array_equal(np.bincount(labels), np.bincount(train.labels))
        assert not np.array_equal(epochs[0][0][1], epochs[1][0][1])
        total = sum(x.sum() for x, _ in epochs[0])
        if not augment:
            assert total == pytest.approx(train.pixels(mean).sum(), abs=1.0)
    model = keras.Sequential([keras.Input((8, 8, 1)), layers.Flatten(), layers.Dense(10)])
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    losses = model.fit(data.batches(train, mean, 64, True), epochs=3, verbose=0).history["loss"]
    assert losses[-1] < losses[0]


@pytest.mark.one_backend
def test_augmented_images_are_the_same_images_moved():
    image = np.zeros((1, 16, 16, 2), "float32")
    image[0, 7, 5] = [1.0, 2.0]
    seen = set()
    for _ in range(300):
        (moved,) = data.augmented(image, RNG)
        np.testing.assert_allclose(moved.sum(axis=(0, 1)), [1.0, 2.0])
        seen.add(tuple(int(i) for i in np.argwhere(moved[..., 0])[0]))
    rows, columns = (set(part) for part in zip(*seen, strict=True))
    assert rows == set(range(5, 10)) and columns == set(range(3, 8)) | set(range(8, 13))


@pytest.mark.one_backend  # what layers compute is Keras's to test
@pytest.mark.parametrize("name", architectures.NETWORKS)
def test_networks_give_logits_of_so_many_classes(name):
    make = architectures.NETWORKS[name]
    shape = (32, 32, 3)
    arguments = {"shape": shape} if name == "resnet18" else {}
    model = make(classes=7, width=0.1, **arguments)
    outputs = model(RNG.normal(size=(2, *shape)).astype("float32"), training=False)
    assert tuple(outputs.shape) == (2, 7)
    names = [layer.name for layer in model.layers]
    assert len(set(names)) == len(names)


@pytest.mark.one_backend  # what layers compute is Keras's to test
def test_weights_of_the_networks():
    counts = {"lenet": 1_039_386, "vgg16": 14_995_146, "resnet20": 274_042}
    for name, count in counts.items():
        assert architectures.NETWORKS[name]().count_params() == count
    plain = architectures.vgg16(normalize=False)
    assert not any(isinstance(layer, layers.BatchNormalization) for layer in plain.layers)
