"""Runs a full-integer file by `numerics.integer`, operator by operator."""

import numpy as np

from keras_qareg.export.litert import flatbuffer
from keras_qareg.numerics import codes as tensors
from keras_qareg.numerics import integer
from keras_qareg.numerics.codes import Codes, Grid

ACTIVATIONS, PADDINGS = {0: None, 1: "relu", 3: "relu6"}, ("same", "valid")
KINDS = {0: "<f4", 2: "<i4", 4: "<i8", 7: "<i2", 9: "i1"}


class File:
    """A file and what its tensors are: constants, inputs, and what was computed since."""

    def __init__(self, content, inputs, once=False):
        self.model = flatbuffer.read(content)
        self.graph, self.once = self.model.subgraphs[0], once
        self.tensors = {}
        for place, tensor in enumerate(self.graph.tensors):
            data = self.model.buffers[tensor.buffer].data
            if data is not None:
                values = np.frombuffer(bytes(data), KINDS[tensor.type])
                self.tensors[place] = values.reshape(flatbuffer.listed(tensor.shape))
        self.tensors |= inputs

    def grid(self, place):
        """The grid of a tensor, or `None`."""
        tensor = self.graph.tensors[place]
        details = tensor.quantization
        if details is None or details.scale is None:
            return None
        return Grid(details.scale[0], int(details.zeroPoint[0]), 16 if tensor.type == 7 else 8)

    def run(self, but=()):
        """Computes all tensors but those of some operators, and yields the others' names and places."""
        for operator in self.graph.operators:
            name = flatbuffer.operator_name(self.model, operator)
            places = flatbuffer.listed(operator.inputs)
            if name in but or not set(places) & set(self.tensors):
                continue
            if name in ("SHAPE", "STRIDED_SLICE", "PACK"):  # the batch size, for a RESHAPE
                continue
            given = [self.tensors.get(place) for place in places]
            codes = [
                None if given[i] is None else Codes(given[i], self.grid(place))
                for i, place in enumerate(places)
            ]
            output = int(operator.outputs[0])
            steps = self.graph.tensors[places[1]].quantization if len(places) > 1 else None
            found = self.compute(name, operator.builtinOptions, given, codes, output, steps)
            self.tensors[output] = found.values if isinstance(found, Codes) else found
            yield name, output

    def compute(self, name, options, given, codes, output, steps):
        grid = self.grid(output)
        activation = ACTIVATIONS[getattr(options, "fusedActivationFunction", 0)]
        if name in ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"):
            scales = np.array(steps.scale, "float32")
            bias = given[2] if len(given) > 2 else None
            if name == "FULLY_CONNECTED":
                kernel, once = given[1], self.once
                return integer.dense(codes[0], kernel, scales, bias, grid, activation, once)
            kind = integer.conv2d if name == "CONV_2D" else integer.depthwise_conv2d
            return kind(
                codes[0],
                given[1],
                scales,
                bias,
                grid,
                strides=(options.strideH, options.strideW),
                padding=PADDINGS[options.padding],
                dilation=(options.dilationHFactor, options.dilationWFactor),
                activation=activation,
            )
        if name in ("MAX_POOL_2D", "AVERAGE_POOL_2D"):
            size = options.filterHeight, options.filterWidth
            strides = options.strideH, options.strideW
            kind = integer.max_pool if name == "MAX_POOL_2D" else integer.average_pool
            return kind(codes[0], size, strides, PADDINGS[options.padding])
        if name == "MEAN":
            return integer.mean(codes[0], [int(a) for a in given[1]], grid, options.keepDims)
        if name == "CONCATENATION":
            return integer.concatenate(codes, options.axis)
        if name == "QUANTIZE":
            if given[0].dtype == "float32":
                return tensors.quantize(given[0], grid)
            return tensors.requantize(codes[0], grid)
        return {
            "DEQUANTIZE": lambda: tensors.dequantize(codes[0]),
            "ADD": lambda: integer.add(codes[0], codes[1], grid, activation),
            "MUL": lambda: integer.multiply(codes[0], codes[1], grid, activation),
            "SOFTMAX": lambda: integer.softmax(codes[0]),
            "LOGISTIC": lambda: integer.sigmoid(codes[0]),
            "RESHAPE": lambda: given[0].reshape(
                [len(given[0]), *flatbuffer.listed(self.graph.tensors[output].shape)[1:]]
            ),
        }[name]()
