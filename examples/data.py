"""Images to train on: scikit-learn's digits, TensorFlow Datasets, or folders and zips of class folders.

Pixels are divided by 255 (digits by 16), and the mean of each channel over the training images is taken
away, as arXiv 2602.03614 does; nothing is divided by the deviation.
"""

import io
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np

SHAPES = {
    "digits": (8, 8, 1),
    "cifar10": (32, 32, 3),
    "cifar100": (32, 32, 3),
    "imagenet2012": (224, 224, 3),
}
# Of ImageNet's training images, as they are known; computing it takes a pass over 150 GB.
_IMAGENET_MEAN = np.array([0.485, 0.456, 0.406], "float32")
_SUFFIXES = (".jpg", ".jpeg", ".png")


def evenly(images: np.ndarray, count: int) -> np.ndarray:
    """About so many images, from all over: folders of classes are read one after the other."""
    return images[:: max(1, len(images) // count)]


@dataclass(frozen=True)
class Images:
    """Images and labels in memory.

    Attributes:
        images: Uint8 array `(n, height, width, channels)`.
        labels: Int32 array `(n,)`.
        classes: Number of classes.
        largest: The value of a white pixel.
    """

    images: np.ndarray
    labels: np.ndarray
    classes: int
    largest: float = 255.0

    @property
    def mean(self) -> np.ndarray:
        """The mean of each channel, in [0, 1]."""
        return (self.images.mean(axis=(0, 1, 2)) / self.largest).astype("float32")

    def pixels(self, mean: np.ndarray) -> np.ndarray:
        """Float32 images in [0, 1] less a mean."""
        return self.images.astype("float32") / np.float32(self.largest) - mean

    def split(self, share: float, seed: int = 0) -> tuple["Images", "Images"]:
        """Two parts at random, the second with this share of the images."""
        order = np.random.default_rng(seed).permutation(len(self.labels))
        count = len(order) - round(share * len(order))
        return self.take(order[:count]), self.take(order[count:])

    def take(self, places: np.ndarray) -> "Images":
        """The images and labels at these places."""
        return Images(self.images[places], self.labels[places], self.classes, self.largest)


def load(name: str, data_dir: str | Path | None = None) -> tuple[Images, Images]:
    """Training and test images of a data set that fits into memory.

    Args:
        name: `"digits"`, or `"cifar10"`, `"cifar100"` or any other image classification data set of
            TensorFlow Datasets, which downloads it.
        data_dir: A folder with `NAME-train.zip` and `NAME-test.zip`, or folders `NAME-train` and
            `NAME-test`, of a folder of images for each class: used in place of TensorFlow Datasets;
            where it has neither, it is the folder that TensorFlow Datasets keeps its data in.

    Returns:
        `(train, test)`.

    Raises:
        ValueError: If a folder or zip has no images, or images of several sizes.
    """
    if name == "digits":
        return _digits()
    sources = [] if data_dir is None else [_local(Path(data_dir), name, p) for p in _PARTS]
    if sources and None not in sources:
        train, test = (_read(source) for source in sources)
        return train, test
    import tensorflow_datasets as tfds

    parts, info = tfds.load(
        name,
        split=list(_PARTS),
        data_dir=None if data_dir is None else str(data_dir),
        as_supervised=True,
        with_info=True,
    )
    found = []
    for part in parts:
        images, labels = zip(*tfds.as_numpy(part.batch(1000)), strict=True)
        whole = np.concatenate(images), np.concatenate(labels).astype("int32")
        found.append(Images(*whole, info.features["label"].num_classes))
    return found[0], found[1]


_PARTS = ("train", "test")


def batches(
    data: Images,
    mean: np.ndarray,
    batch_size: int,
    augment: bool = False,
    seed: int = 0,
    drop_remainder: bool = False,
) -> Any:
    """What `fit` takes: shuffled batches of images and labels, for ever new where augmented.

    Args:
        data: The images.
        mean: What is taken away from pixels in [0, 1], of shape `(channels,)`.
        batch_size: Examples a batch.
        augment: Whether images are turned over left to right at random, and moved by up to an eighth
            of their height and width. Defaults to `False`.
        seed: Of the order and the augmentation.
        drop_remainder: Whether the images that do not fill a batch are left out of an epoch, as
            training on several devices needs it. Defaults to `False`.

    Returns:
        A `tf.data.Dataset` on TensorFlow, else a `keras.utils.PyDataset` of NumPy arrays.
    """
    source = _Batches(data, mean, batch_size, augment, seed, drop_remainder)
    if keras.backend.backend() != "tensorflow":
        return source
    import tensorflow as tf

    shape = (None, *data.images.shape[1:])
    specs = tf.TensorSpec(shape, "float32"), tf.TensorSpec((None,), "int32")
    found = tf.data.Dataset.from_generator(source.epoch, output_signature=specs)
    options = tf.data.Options()
    # There is nothing to tune, and an epoch's end would wait for the tuner to wake up.
    options.autotune.enabled = False
    found = found.apply(tf.data.experimental.assert_cardinality(len(source)))
    return found.prefetch(2).with_options(options)


class _Batches(keras.utils.PyDataset):
    """Shuffled batches, prepared by NumPy."""

    def __init__(
        self,
        data: Images,
        mean: np.ndarray,
        batch_size: int,
        augment: bool,
        seed: int,
        drop_remainder: bool,
    ):
        super().__init__()
        count = len(data.labels)
        self.count = count // batch_size if drop_remainder else -(-count // batch_size)
        self.data, self.mean, self.batch_size, self.augment = data, mean, batch_size, augment
        self.random = np.random.default_rng(seed)
        self.on_epoch_end()

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        places = self.order[index * self.batch_size : (index + 1) * self.batch_size]
        part = self.data.take(places)
        pixels = part.pixels(self.mean)
        return augmented(pixels, self.random) if self.augment else pixels, part.labels

    def on_epoch_end(self) -> None:
        self.order = self.random.permutation(len(self.data.labels))

    def epoch(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """All batches once; the next epoch has another order."""
        for index in range(len(self)):
            yield self[index]
        self.on_epoch_end()


def augmented(pixels: np.ndarray, random: np.random.Generator, share: float = 1 / 8) -> np.ndarray:
    """Each image turned over with probability 1/2, and moved by up to a share, zeros coming in."""
    count, height, width = pixels.shape[:3]
    tall, wide = int(height * share), int(width * share)
    padded = np.pad(pixels, ((0, 0), (tall, tall), (wide, wide), (0, 0)))
    rows = random.integers(0, 2 * tall + 1, count)[:, None] + np.arange(height)
    columns = random.integers(0, 2 * wide + 1, count)[:, None] + np.arange(width)
    flipped = random.random(count) < 0.5
    columns[flipped] = columns[flipped, ::-1]
    return padded[np.arange(count)[:, None, None], rows[:, :, None], columns[:, None, :]]


def imagenet(
    batch_size: int,
    data_dir: str | Path | None = None,
    name: str = "imagenet2012",
    seed: int = 0,
    drop_remainder: bool = False,
) -> tuple[Any, Any, int]:
    """ImageNet through TensorFlow Datasets, read from disk: augmented for training, cropped for tests.

    Training images are random crops of 8 to 100 % of the area, resized and turned over at random; test
    images have their shorter side resized to 256 and the middle cut out.

    Args:
        batch_size: Examples a batch.
        data_dir: Where TensorFlow Datasets has it; ImageNet must be downloaded by hand.
        name: The data set.
        seed: Of the order; where several workers share the files out, all must have the same.
        drop_remainder: As in `batches`, for the test images too. Defaults to `False`.

    Returns:
        `(train, test, classes)`: `tf.data.Dataset`s of batches of float32 images and int32 labels, which
        `fit` takes on any backend.
    """
    import tensorflow as tf
    import tensorflow_datasets as tfds

    directory = None if data_dir is None else str(data_dir)
    (train, test), info = tfds.load(
        name,
        split=["train", "validation"],
        data_dir=directory,
        as_supervised=True,
        with_info=True,
        shuffle_files=True,
        read_config=tfds.ReadConfig(shuffle_seed=seed),
    )
    side = SHAPES["imagenet2012"][0]

    def finish(image: Any, label: Any) -> tuple[Any, Any]:
        image = tf.cast(image, "float32") / 255.0 - _IMAGENET_MEAN
        return tf.ensure_shape(image, (side, side, 3)), tf.cast(label, "int32")

    def for_training(image: Any, label: Any) -> tuple[Any, Any]:
        box = tf.zeros((0, 0, 4))
        begin, size, _ = tf.image.sample_distorted_bounding_box(
            tf.shape(image), box, area_range=(0.08, 1.0), use_image_if_no_bounding_boxes=True
        )
        image = tf.image.resize(tf.slice(image, begin, size), (side, side))
        return finish(tf.image.random_flip_left_right(image), label)

    def for_test(image: Any, label: Any) -> tuple[Any, Any]:
        scale = 256 / tf.cast(tf.reduce_min(tf.shape(image)[:2]), "float32")
        tall, wide = tf.unstack(tf.cast(tf.shape(image)[:2], "float32") * scale)
        size = tf.cast(tf.math.ceil([tall, wide]), "int32")
        image = tf.image.resize_with_crop_or_pad(tf.image.resize(image, size), side, side)
        return finish(image, label)

    train = train.shuffle(10_000, seed).map(for_training, tf.data.AUTOTUNE)
    test = test.map(for_test, tf.data.AUTOTUNE)
    parts = [
        part.batch(batch_size, drop_remainder).prefetch(tf.data.AUTOTUNE) for part in (train, test)
    ]
    return parts[0], parts[1], info.features["label"].num_classes


def _digits() -> tuple[Images, Images]:
    """Three quarters to train, one quarter to test, each with all classes alike."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    images = images.astype("uint8").reshape(-1, *SHAPES["digits"])
    parts = train_test_split(images, labels, test_size=0.25, stratify=labels, random_state=0)
    train, test = (
        Images(parts[i], parts[i + 2].astype("int32"), 10, largest=16.0) for i in range(2)
    )
    return train, test


def _local(folder: Path, name: str, part: str) -> Path | None:
    for candidate in (folder / f"{name}-{part}.zip", folder / f"{name}-{part}"):
        if candidate.exists():
            return candidate
    return None


def _read(source: Path) -> Images:
    """The images of a zip or folder; the folders that they are in are the classes, by their names."""
    from PIL import Image

    found = [
        (Path(name).parent.name, np.asarray(Image.open(io.BytesIO(content)).convert("RGB")))
        for name, content in _files(source)
    ]
    shapes = {image.shape for _, image in found}
    if len(shapes) != 1:
        raise ValueError(
            f"Expected images of one size, in folders by class, in {source}. Received: "
            f"{len(found)} images of sizes {sorted(shapes)}"
        )
    names = sorted({name for name, _ in found})
    labels = np.array([names.index(name) for name, _ in found], "int32")
    return Images(np.stack([image for _, image in found]), labels, len(names))


def _files(source: Path) -> Iterator[tuple[str, bytes]]:
    if source.is_dir():
        for path in sorted(source.rglob("*")):
            if path.suffix.lower() in _SUFFIXES:
                yield str(path), path.read_bytes()
        return
    with zipfile.ZipFile(source) as archive:
        for name in sorted(archive.namelist()):
            if name.lower().endswith(_SUFFIXES):
                yield name, archive.read(name)
