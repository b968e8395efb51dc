"""What replicas found, on PyTorch: processes of a group. TensorFlow's are tested with the layers."""

import numpy as np
import pytest
from keras import ops

from keras_qareg.numerics import replicas
from keras_qareg.quantizers import ActivationQuantizer
from tests.helpers import BACKEND, arrays

RNG = np.random.default_rng(0)
INPUTS = np.abs(RNG.normal(size=(8, 5))).astype("float32")
BASIS = np.array([0.4, 0.9], "float32")


def test_alone_there_is_one_replica():
    np.testing.assert_array_equal(*arrays(replicas.gathered(ops.array(INPUTS))), INPUTS[None])
    np.testing.assert_allclose(*arrays(replicas.mean(ops.array(INPUTS))), INPUTS)


def update_of_share(rank, address, results):
    from torch import distributed

    distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    basis = ActivationQuantizer(2).update(INPUTS[rank::2], BASIS)
    results[rank] = arrays(basis)[0].tolist()
    distributed.destroy_process_group()


@pytest.mark.skipif(BACKEND != "torch", reason="processes of PyTorch")
def test_two_processes_learn_what_one_would(tmp_path):
    from torch import multiprocessing

    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager:
        results = manager.dict()
        address = f"file://{tmp_path / 'group'}"
        multiprocessing.spawn(update_of_share, (address, results), nprocs=2)
        (expected,) = arrays(ActivationQuantizer(2).update(INPUTS, BASIS))
        for rank in range(2):
            np.testing.assert_allclose(results[rank], expected, rtol=1e-5)
