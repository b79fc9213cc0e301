"""What fails in tests."""


class Panic(BaseException):
    """What an extension raises that is no Python: pyo3's for a panic in Rust is no Exception."""
