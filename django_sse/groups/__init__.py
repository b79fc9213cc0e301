"""Groups: their names, their numbered entries, and the positions of clients in them.

Promise: a name means one group, a position says exactly what a client has, and nobody can make one
up. Plain values without a store, a request or an event loop: everything may import it.
"""
