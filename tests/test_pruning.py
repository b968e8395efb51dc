"""Pruning in training, and that what was pruned stays zero in all that a model becomes after it."""

import warnings

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import layers, ops

import keras_qareg as qareg
from keras_qareg.callbacks import PenaltySchedule, PruningSchedule
from keras_qareg.numerics import sparsity
from keras_qareg.regularizers import Cosine, NearestExponential, NearestSquared, Sine
from tests.helpers import BACKEND, compiled, digits, error_of, small_cnn, tensorflow_only


@settings(max_examples=30, deadline=None, derandomize=True, database=None)
@given(st.data())
def test_the_smallest_go(data):
    shape = data.draw(st.sampled_from([(8, 6), (3, 3, 8, 5), (3, 12, 1)]))
    weights = np.random.default_rng(data.draw(st.integers(0, 9))).normal(size=shape)
    share = data.draw(st.floats(0, 0.99))
    kept = sparsity.kept(weights, share)
    assert (~kept).sum() == min(round(share * weights.size), weights.size - 1)
    assert abs(weights[~kept]).max(initial=0) <= abs(weights[kept]).min()
    again = sparsity.kept(np.where(kept, weights, 0), share / 2)
    np.testing.assert_array_equal(again, kept)  # what went is gone
    channels = sparsity.kept(weights, share, "channels")
    norms = np.square(weights).sum(axis=tuple(range(len(shape) - 1)))
    live = channels.reshape(-1, shape[-1]).all(axis=0)
    assert live.any() and not (norms[~live].max(initial=0) > norms[live].min())
    np.testing.assert_array_equal(channels, np.broadcast_to(live, shape))


def test_blocks_and_so_many_of_each_few():
    weights = np.random.default_rng(0).normal(size=(3, 8, 5))
    half = sparsity.kept(weights, 0.5, "2:4")
    for group in half.reshape(3, 2, 4, 5).transpose(0, 1, 3, 2).reshape(-1, 4):
        assert group.sum() == 2
    assert (sparsity.kept(weights, 0.3, "2:4").reshape(3, 2, 4, 5).sum(axis=2) == 3).all()
    blocks = sparsity.kept(weights, 0.5, (3, 2))
    for rows in (slice(0, 3), slice(3, 6), slice(6, 8)):
        for columns in (slice(0, 2), slice(2, 4), slice(4, 5)):
            part = blocks[:, rows, columns].reshape(3, -1)
            assert (part.all(axis=1) | ~part.any(axis=1)).all()
    means = [abs(weights[0, :3, :2]).mean(), blocks[0, :3, :2].all()]
    assert means[1] == (means[0] > np.median(np.abs(weights)) or means[1])


def zeros_of(model):
    """Where each kernel of a model, as it computes with it, is zero."""
    plain = qareg.strip(model)
    return {
        w.path.split("/")[-2]: ops.convert_to_numpy(w) == 0
        for w in plain.weights
        if w.name == "kernel"
    }


def prune(target, structure="weights", normalize=False):
    """A CNN, trained on digits while it was pruned."""
    model = compiled(small_cnn(normalize=normalize))
    schedule = PruningSchedule(target, structure=structure)
    model.fit(*digits(96), epochs=2, verbose=0, callbacks=[schedule])
    return model


@pytest.fixture(scope="module")
def pruned():
    """A pruned CNN; no test changes it."""
    return prune(0.6)


def assert_kept(before, after):
    for name, zeros in before.items():
        if zeros.mean() > 0.1:
            assert after[name][zeros].all(), f"{name}: {after[name][zeros].mean():.3f} are left"


@pytest.mark.parametrize("settings", [{}, {"steps_per_execution": 2}], ids=["steps", "together"])
def test_the_share_of_zeros_rises_as_said(settings):
    images, labels = digits(96)
    model = compiled(small_cnn(), **({} if BACKEND == "torch" else settings))
    schedule = PruningSchedule({"fc": 0.75, "conv": 0.5, "*": None}, 0.25, 0.75, frequency=2)
    seen = []

    class Watch(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            if keras.backend.backend() == "jax":
                self.model.jax_state_sync()
            seen.append(schedule.sparsity()["cnn/fc/kernel"])

    model.fit(images, labels, epochs=4, verbose=0, callbacks=[schedule, Watch()])
    # Three steps an epoch: begin 3, end 9; the last of every second step before 6 is 5.
    expected = [sparsity.polynomial(p, 0.75) for p in (0, 1 / 3, 1, 1)]
    np.testing.assert_allclose(seen, expected, atol=0.002)
    found = {name: zeros.mean() for name, zeros in zeros_of(model).items()}
    assert found == {"conv": 0.5, "fc": pytest.approx(0.75, abs=1e-3), "out": 0}
    # Further training by a schedule keeps them, and prunes no less.
    before = zeros_of(model)
    model.fit(images, labels, epochs=1, verbose=0, callbacks=[PruningSchedule(0.0)])
    assert_kept(before, zeros_of(model))
    assert repr(schedule).endswith("0.25, end=0.75, frequency=2, structure='weights')")


REGULARIZERS = [Sine, Cosine, NearestSquared, NearestExponential]


@pytest.mark.parametrize(
    ("kind", "straight_through"),
    [*((kind, True) for kind in REGULARIZERS), (NearestSquared, False)],
)
def test_zeros_stay_in_training_tuning_and_files(pruned, kind, straight_through, tmp_path):
    model, (images, labels) = pruned, digits(96)
    before = zeros_of(model)
    trained = compiled(qareg.quantization_aware(model, kind(8), straight_through=straight_through))
    assert trained.get_layer("fc").keeps_zeros
    schedule = PenaltySchedule(warmup_epochs=1)
    trained.fit(images, labels, epochs=2, verbose=0, callbacks=[schedule])
    assert all(np.count_nonzero(table == 0) >= 1 for table in trained.get_layer("fc").tables())
    assert_kept(before, zeros_of(trained))
    shared = compiled(qareg.share_weights(trained))
    assert_kept(before, zeros_of(shared))
    shared.fit(images, labels, epochs=1, verbose=0)
    assert_kept(before, zeros_of(shared))
    trained.save(tmp_path / "x.keras")
    again = keras.saving.load_model(tmp_path / "x.keras")
    assert again.get_layer("fc").keeps_zeros
    qareg.export.save_archive(shared, tmp_path / "x.qareg")
    assert_kept(before, zeros_of(qareg.export.load_archive(tmp_path / "x.qareg")))


@pytest.mark.parametrize("method", ["kmeans", "auto", "rate-distortion"])
@pytest.mark.parametrize("scale", ["kernel", "channel"])
@pytest.mark.parametrize("table", ["int8", "float32"])
def test_zeros_stay_in_sharing(pruned, method, scale, table):
    model = pruned
    rate = 1e-4 if method == "rate-distortion" else None
    shared = compiled(
        qareg.share_weights(model, 4, method=method, rate=rate, scale=scale, table=table)
    )
    assert_kept(zeros_of(model), zeros_of(shared))


def test_zeros_stay_in_the_whole_job(pruned):
    small = qareg.compress(pruned, digits(64)[0], levels=4, epochs=2, verbose=0)
    assert_kept(zeros_of(pruned), zeros_of(small))
    with pytest.warns(
        UserWarning, match="have many zeros, as where they were pruned, of which WNQ"
    ):
        qareg.wnq(pruned, skip=())


def test_zeros_stay_in_integer_training(pruned):
    model, (images, labels) = pruned, digits(96)
    before = zeros_of(model)
    for network in (model, qareg.share_weights(model, 8)):
        integer = compiled(qareg.quantize_activations(network, images))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            integer.fit(images, labels, epochs=1, verbose=0)
            assert_kept(before, zeros_of(integer))


@tensorflow_only
def test_zeros_are_in_the_file(pruned, tmp_path):
    model = pruned
    shared = qareg.share_weights(model, 8)
    qareg.export.litert(shared, tmp_path / "x.tflite", "smallest")
    qareg.export.verify(qareg.strip(shared), tmp_path / "x.tflite")  # kernels, bit for bit
    assert_kept(zeros_of(model), zeros_of(shared))


def test_pruned_channels_are_removed():
    model = prune({"conv": 0.5, "fc": 0.25}, "channels", normalize=True)
    assert model.get_layer("conv").kernel.shape[-1] == 6
    small = qareg.shrink(model, digits(8)[0])
    assert [small.get_layer(name).kernel.shape[-1] for name in ("conv", "fc", "out")] == [3, 12, 10]


def test_zeros_that_would_be_lost_are_an_error():
    model, images = small_cnn(), digits(32)
    wrapped = compiled(qareg.quantization_aware(model, NearestSquared(4)))
    assert error_of(wrapped.fit, *images, verbose=0, callbacks=[PruningSchedule()]) == (
        "Expected a regularizer with zero_basin=True, to prune 'kernel' of layer 'conv'. Received: "
        "QuantizationAware, which computes with other values than 0. Prune first, then quantize or "
        "share."
    )
    wrapped = compiled(qareg.quantization_aware(model, NearestSquared(4, zero_basin=True)))
    wrapped.fit(*images, verbose=0, callbacks=[PruningSchedule(0.5, end=0), PenaltySchedule(0)])
    assert zeros_of(wrapped)["fc"].mean() >= 0.5
    for wrong, said in (
        (
            {"target_sparsity": 1.0},
            "Expected `target_sparsity` from 0 to below 1, the share of zeros",
        ),
        (
            {"structure": "2:4", "target_sparsity": 0.6},
            "Expected target_sparsity=0.5 with structure",
        ),
        (
            {"structure": "4:2"},
            "Expected `structure` to be 'weights', 'channels', so many of each few",
        ),
        ({"begin": 0.6}, "Expected 0 <= begin <= end <= 1. Received: begin=0.6, end=0.5"),
        ({"frequency": 0}, "Expected `frequency` to be a positive integer or None. Received: "),
        ({"begin": "a"}, "Expected `begin` to be a share of the training, from 0 to 1. Received: "),
        (
            {"layers": 3},
            "Expected `layers` to be 'all', 'conv', 'dense', names of layers, a class",
        ),
    ):
        assert error_of(lambda s: _fit(model, s), wrong).startswith(said)
    with pytest.raises(ValueError, match="zero_basin=True and table='even'"):
        Sine(2, table="even", zero_basin=True)


def _fit(model, settings):
    compiled(model).fit(*digits(32), verbose=0, callbacks=[PruningSchedule(**settings)])


@pytest.mark.parametrize("kind", REGULARIZERS)
@pytest.mark.parametrize("levels", [2, 3, 16, 255])
def test_one_basin_is_zero(kind, levels):
    regularizer = kind(levels, zero_basin=True)
    assert (regularizer.basins() == 0).sum() == 1
    found = regularizer.fit_basins(np.linspace(-0.13, 0.4, levels))
    assert (found == 0).sum() == 1 and len(found) == levels
    if not regularizer.learned:  # where they are penalized is where they are
        weights = ops.convert_to_tensor(found)
        assert float(regularizer.penalty(weights, found)) < 0.01
        assert np.ptp(np.diff(found)) < 1e-6
    again = qareg.regularizers.deserialize(qareg.regularizers.serialize(regularizer))
    assert again.zero_basin is True and kind(levels).zero_basin == "auto"


def test_layers_of_zeros_alone_train():
    model = keras.Sequential(
        [keras.Input((4,)), layers.Dense(8, kernel_initializer="zeros", name="fc")]
    )
    model = compiled(qareg.quantization_aware(model, NearestSquared(4)))
    model.fit(np.eye(4), np.arange(4), verbose=0, callbacks=[PenaltySchedule(1, 1)])
    assert np.abs(ops.convert_to_numpy(model.get_layer("fc").layer.kernel)).max() > 0


def fitted(*callbacks, optimizer="adam", epochs=6):
    x = np.random.default_rng(0).normal(size=(64, 16)).astype("float32")
    model = keras.Sequential([keras.Input((16,)), layers.Dense(24, "relu"), layers.Dense(4)])
    model.compile(optimizer, "mse")
    model.fit(x, x[:, :4], epochs=epochs, batch_size=16, verbose=0, callbacks=list(callbacks))
    return model


def share_of(model):
    return float((ops.convert_to_numpy(model.layers[0].kernel) == 0).mean())


def test_what_ends_before_the_zeros_are_there_is_told():
    rising = {"monitor": "loss", "mode": "max"}  # the first epoch is the best
    stops = keras.callbacks.EarlyStopping(**rising, patience=1)
    with pytest.warns(UserWarning, match="Training ended before `end`: kernels have fewer zeros"):
        fitted(PruningSchedule(0.8, end=1.0), stops)
    restores = keras.callbacks.EarlyStopping(**rising, patience=20, restore_best_weights=True)
    with pytest.warns(UserWarning, match="restored weights of before in .*`start_from_epoch`"):
        assert share_of(fitted(restores, PruningSchedule(0.9))) < 0.9  # as they were restored
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        assert share_of(fitted(PruningSchedule(0.8))) == pytest.approx(0.8, abs=0.01)


def test_averages_are_pruned_too(tmp_path):
    adam = keras.optimizers.Adam(1e-2, use_ema=True, ema_momentum=0.9)
    file = tmp_path / "model.keras"
    swap = keras.callbacks.SwapEMAWeights(swap_on_epoch=True)
    schedule, kept = PruningSchedule(0.8, end=0.25), keras.callbacks.ModelCheckpoint(file)
    model = fitted(swap, schedule, kept, optimizer=adam, epochs=4)
    for found in (model, keras.saving.load_model(file)):
        assert share_of(found) == pytest.approx(0.8, abs=0.01)


def test_thirds_and_settings_of_so_many_of_each_few():
    model = keras.Sequential(
        [keras.Input((24,)), layers.Dense(6, name="a"), layers.Dense(4, name="b")]
    )
    for target, structure in ((2 / 3, "1:3"), (np.float32(1 / 3), "2:3")):
        model.compile("sgd", "mse")
        model.fit(
            np.ones((8, 24)),
            np.ones((8, 4)),
            verbose=0,
            callbacks=[PruningSchedule(target, end=0.0, structure=structure, layers=["a"])],
        )
        assert share_of(model) == pytest.approx(2 / 3)  # what is zero stays so
    schedule = PruningSchedule({"a": 0.5, "b": None}, structure="2:4")
    message = error_of(
        model.fit,
        np.ones((8, 24)),
        np.ones((8, 4)),
        verbose=0,
        callbacks=[PruningSchedule({"a": 0.4, "b": None}, structure="2:4")],
    )
    assert (
        message
        == "Expected target_sparsity=0.5 with structure='2:4'. Received: target_sparsity=0.4"
    )
    model.fit(np.ones((8, 24)), np.ones((8, 4)), verbose=0, callbacks=[schedule])
    model.trainable = False
    assert "all that they choose are frozen" in error_of(
        model.fit, np.ones((8, 24)), np.ones((8, 4)), verbose=0, callbacks=[PruningSchedule(0.5)]
    )


def test_tables_without_a_zero_say_so(pruned):
    for quantize, said in (
        (lambda: qareg.quantization_aware(pruned, Sine(2), table="even"), "They are lost under"),
        (
            lambda: qareg.quantization_aware(pruned, qareg.regularizers.DKM(4)),
            "They are lost under",
        ),
        (lambda: qareg.share_weights(pruned, 2, table="even"), "and lose them: 'cnn/conv/kernel'"),
    ):
        with pytest.warns(UserWarning, match=said):
            quantize()
    assert "Expected three levels or more with zero_centroid=True and table='even'" in error_of(
        qareg.share_weights, pruned, 2, table="even", zero_centroid=True
    )
