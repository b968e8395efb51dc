"""LiteRT (`.tflite`) files: converted, rewritten, run, and proved.

What belongs here: all that knows the format or its runtimes, on phones (LiteRT) and microcontrollers
(TFLite Micro). What does not: other formats, and the mathematics of what is written (`numerics`).
`convert.litert` is the way in.
"""
