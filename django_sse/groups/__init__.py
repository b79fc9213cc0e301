"""Groups: their names, their numbered entries, and the positions of clients in them.

Promise: a name means one group, a position says exactly what a client has, and nobody can forge a
position. It holds plain values and needs no store, request or event loop: everything may import it.
"""
