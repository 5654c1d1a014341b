"""
Everlens: an image classifier that learns while it serves.

The way of the data, and the room of each step:

    ① HTTP → ② admission → ③ stream → ④ batch → ⑤ learner → ⑥ commit → ⑦ publication
        → ⑧ hot swap → ⑨ answer

This package is what the two halves must agree on: records and their bytes (`records`, `wire`,
`pixels`), what is published (`artifact`), the stream and the head (`bus`), and the one forward
path that both learns and answers (`model`). `service` speaks HTTP (①②⑧⑨), `worker` alone changes
weights (④⑤⑥⑦). Importing `everlens` loads no torch.
"""

__version__ = "0.1.0"
