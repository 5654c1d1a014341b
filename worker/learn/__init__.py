"""
Arithmetic only: no Redis, no HTTP, no clock; randomness is passed in. ⑤

What is learnt here is a function of the base model, the settings and the entries of the log.
"""
