"""Every form of data, read the same, and one clear error each for what does not fit."""

import itertools

import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_qareg as qareg
from keras_qareg.data import read, samples
from tests.helpers import BACKEND, error_of

X = np.arange(40, dtype="float32").reshape(10, 4)
Y = np.arange(10, dtype="int32") % 2
W = np.ones(10, "float32")


def one_input() -> keras.Model:
    return keras.Sequential([keras.Input((4,), name="x"), layers.Dense(2)])


def two_inputs(structure=list) -> keras.Model:
    a, b = keras.Input((4,), name="a"), keras.Input((3,), name="b")
    inputs = {"a": a, "b": b} if structure is dict else structure([a, b])
    return keras.Model(inputs, layers.Dense(2)(layers.Concatenate()([a, b])))


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = layers.Dense(2)

    def call(self, inputs):
        return self.dense(inputs["a"]) + self.dense(inputs["b"])


class Pieces(keras.utils.PyDataset):
    def __init__(self, batches, count=None):
        super().__init__()
        self.pieces, self.count = batches, count

    @property
    def num_batches(self):
        return self.count

    def __getitem__(self, index):
        return self.pieces[index % len(self.pieces)]


class Loader:
    """What a PyTorch DataLoader is to others: an iterable of lists of tensors."""

    def __init__(self, batches):
        self.batches = batches

    def __iter__(self):
        return iter([list(batch) for batch in self.batches])


WRONG_SHAPE = "Expected `data` to have inputs of shape (None, 4) for 'x'. Received: "
BATCHES = [(X[:4], Y[:4]), (X[4:8], Y[4:8]), (X[8:], Y[8:])]


@pytest.mark.parametrize(
    "data",
    [
        (X, Y),
        (ops.convert_to_tensor(X), Y),
        ([X], Y),
        ({"x": X, "unused": Y}, Y),
        (X.astype("float64"), Y.astype("int64")),
        BATCHES,
        Pieces(BATCHES, 3),
        Loader(BATCHES),
        iter(BATCHES),
        lambda: iter(BATCHES),
        lambda: BATCHES,
    ],
)
def test_all_forms_with_targets_are_read_alike(data):
    given = read(data, one_input())
    batches = list(given.batches(4))
    assert [batch[0].shape for batch in batches] == [(4, 4), (4, 4), (2, 4)]
    np.testing.assert_array_equal(np.concatenate([inputs for inputs, _, _ in batches]), X)
    np.testing.assert_array_equal(np.concatenate([targets for _, targets, _ in batches]), Y)
    assert {inputs.dtype for inputs, _, _ in batches} == {np.dtype("float32")}


@pytest.mark.parametrize(
    "data",
    [X, [X], (X,), {"x": X}, [X[:5], X[5:]], iter([X]), lambda: ([row] for row in [X[:5], X[5:]])],
)
def test_all_forms_without_targets_are_read_alike(data):
    batches = list(read(data, one_input()).batches(10))
    assert all(targets is None and weights is None for _, targets, weights in batches)
    np.testing.assert_array_equal(np.concatenate([inputs for inputs, _, _ in batches]), X)


def test_a_dataset_of_tensorflow():
    data = pytest.importorskip("tensorflow").data
    dataset = data.Dataset.from_tensor_slices((X, Y, W)).batch(5)
    given = read(dataset, one_input())
    assert given.has_targets and given.has(10) and not given.has(11)
    assert [weights.shape for _, _, weights in given.batches(1)] == [(5,), (5,)]
    message = error_of(lambda: read(dataset.repeat(), one_input()))
    assert message.startswith(
        "Expected `steps`, the number of batches to take, because `data` is endless. Received: a "
    )
    assert len(list(read(dataset.repeat(), one_input(), steps=3).batches(1))) == 3


def test_a_loader_of_pytorch():
    torch = pytest.importorskip("torch")
    pairs = torch.utils.data.TensorDataset(torch.tensor(X), torch.tensor(Y))
    given = read(torch.utils.data.DataLoader(pairs, batch_size=4), one_input())
    assert [inputs.shape for inputs, _, _ in given.batches(1)] == [(4, 4), (4, 4), (2, 4)]
    assert given.has_targets


def test_endless_data_end_after_steps():
    endless = Pieces(BATCHES[:1])
    assert error_of(lambda: read(endless, one_input())) == (
        "Expected `steps`, the number of batches to take, because `data` is endless. "
        "Received: a Pieces and steps=None."
    )
    assert len(list(read(endless, one_input(), steps=5).batches(1))) == 5
    forever = (batch for batch in itertools.cycle(BATCHES))
    assert len(list(read(forever, one_input(), steps=7).batches(1))) == 7
    assert error_of(lambda: read(X, one_input(), steps=0)) == (
        "Expected `steps` to be a positive integer or None. Received: steps=0"
    )


@pytest.mark.parametrize("structure", [list, tuple, dict])
@pytest.mark.parametrize("as_dict", [False, True])
def test_several_inputs(structure, as_dict):
    b = np.ones((10, 3), "float32")
    model = two_inputs(structure)
    inputs = {"b": b, "a": X} if as_dict else [X, b]
    for data, targets in ((inputs, False), ((inputs, Y), True), ([inputs], False)):
        found = samples(data, model, count=6)
        assert type(found) is structure
        assert [leaf.shape for leaf in keras.tree.flatten(found)] == [(6, 4), (6, 3)]
        assert read(data, model).has_targets == targets
        model(found)


def test_a_subclassed_model_with_a_dict_of_inputs():
    model = Subclassed()
    model({"a": X, "b": X})
    assert set(samples({"a": X, "b": X}, model, count=3)) == {"a", "b"}
    assert read(({"a": X, "b": X}, Y), model).has_targets
    assert error_of(lambda: read({"a": X}, model)) == (
        "Expected `data` to have inputs of the names ['a', 'b']. Received: ['a']"
    )


def test_inputs_get_the_types_and_axes_of_the_model():
    model = keras.Sequential([keras.Input((1,), dtype="int32"), layers.Embedding(8, 2)])
    found = samples(np.array([1.0, 2.0]), model, count=8)
    assert found.dtype == "int32" and found.shape == (2, 1)
    assert error_of(lambda: read(np.array([[0.5]]), model)).startswith(
        "Expected `data` to have inputs of type"
    )


def test_samples_stop_where_shapes_change():
    model = keras.Sequential([keras.Input((None, 2)), layers.Dense(2)])
    parts = [np.zeros((2, 5, 2)), np.zeros((2, 5, 2)), np.zeros((2, 6, 2))]
    assert samples(parts, model, count=8).shape == (4, 5, 2)


@pytest.mark.parametrize(
    "data, message",
    [
        (X[:0], "Expected `data` with inputs. Received: none."),
        (X[:, :3], WRONG_SHAPE + "shape=(10, 3)"),
        (X[0], WRONG_SHAPE + "shape=(4,)"),
        ((X[:, :3], Y), WRONG_SHAPE + "shape=(10, 3)"),
        (
            np.where(X == 5, np.nan, X),
            "Expected `data` without NaN and infinite numbers. Received: NaN in 'x', in 1 of 10 "
            "examples.",
        ),
        (
            np.where(X == 5, -np.inf, X),
            "Expected `data` without NaN and infinite numbers. Received: infinite numbers in 'x', in 1 "
            "of 10 examples.",
        ),
        (
            (X, Y[:9]),
            "Expected the same number of examples in all arrays of `data`. Received: "
            "inputs [10], targets [9]",
        ),
        ([X[:2], X[2:4], X[4:6], X[6:, :3]], WRONG_SHAPE + "shape=(4, 3) (batch 3 of 4)"),
    ],
)
def test_data_that_do_not_fit_are_refused_in_words(data, message):
    assert error_of(lambda: read(data, one_input())) == message


@pytest.mark.parametrize("data", [None, 3, "train.npz", [[1.0, 2.0]], [], {}])
def test_what_are_no_data_is_refused_in_words(data):
    message = error_of(lambda: read(data, one_input()))
    assert message.startswith(
        "Expected `data` to be arrays (a list, tuple or dict of them for several"
    )
    assert "Received: " in message


def test_batches_are_checked_as_they_are_read():
    given = read(iter([X, X[:, :2]]), one_input())
    assert error_of(lambda: list(given.batches(1))) == (
        "Expected `data` to have inputs of shape (None, 4) for 'x'. Received: shape=(10, 2)"
    )
    assert error_of(lambda: list(read(lambda: [], one_input()).batches(1))) == (
        "Expected `data` with inputs. Received: none."
    )
    assert error_of(lambda: list(read(iter([]), one_input()).batches(1))) == (
        "Expected `data` with inputs. Received: none: the iterator has ended. What is measured before "
        "and after training takes batches too: pass a function that returns such an iterator, which is "
        "then begun anew."
    )


@pytest.mark.parametrize("steps", [None, 2])
def test_fit_sees_the_same_examples_in_each_epoch(steps):
    seen = []

    class Watching(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            seen.append(batch)

    for data in ((X, Y), BATCHES, iter(BATCHES), lambda: iter(BATCHES), Pieces(BATCHES, 3)):
        model = one_input()
        model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        given = read(data, model, steps=steps).repeatable()
        seen.clear()
        if steps and isinstance(data, type(iter([]))):
            continue  # an iterator with steps is one that does not end
        model.fit(**given.fit_arguments(4), epochs=2, verbose=0, callbacks=[Watching()])
        assert seen == 2 * [*range(steps or 3)]


def test_batches_of_a_list_are_given_whole_so_that_fit_mixes_them():
    for data in (BATCHES, iter(BATCHES)):
        given = read(data, one_input()).repeatable()
        assert isinstance(given.fit_arguments(4)["x"], keras.utils.PyDataset)


def test_a_function_is_called_anew_for_each_epoch():
    model, calls = one_input(), []

    def augmented():
        calls.append(len(calls))
        return ((x + len(calls), y) for x, y in BATCHES)

    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    given = read(augmented, model).repeatable()
    assert given.steps == 3 and calls == [0]
    before = len(calls)
    model.fit(**given.fit_arguments(4), epochs=4, verbose=0)
    assert len(calls) - before >= 4


@pytest.mark.skipif(BACKEND != "tensorflow", reason="texts are tensors of TensorFlow alone")
def test_texts_are_tensors():
    vocabulary = layers.TextVectorization(max_tokens=50, output_sequence_length=6)
    vocabulary.adapt(["a b c d e", "b c d"])
    text = keras.Input((1,), dtype="string")
    hidden = layers.Flatten()(layers.Embedding(50, 16)(vocabulary(text)))
    model = keras.Model(text, layers.Dense(2)(hidden))
    model.compile("adam", "mse")
    texts = np.array([["a b"], ["c d e"]])
    for inputs in (texts, texts.astype(object), ops.convert_to_tensor(texts)):
        small = qareg.compress(model, inputs, np.ones((2, 2)), levels=4, epochs=1, verbose=0)
        assert len(small(ops.convert_to_tensor(texts))) == 2
    message = error_of(lambda: read(texts, one_input()))
    assert message == WRONG_SHAPE + "shape=(2, 1)"
    message = error_of(lambda: read(np.array([["a", "b", "c", "d"]]), one_input()))
    assert message.startswith("Expected `data` to have inputs of type float32 for 'x'. Received: ")
