"""The mathematics: pure functions of arrays and tensors.

What belongs here: penalties, clustering, grids, the basis of learned levels, codebooks; and `compiled`
and `replicas`, through which they run on every backend. What does not: anything that holds a
`keras.Variable`, knows a layer or a model, or touches a file.
"""
