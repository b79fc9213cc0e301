"""The contenders' servers. Each serves the same streams and takes the same orders."""
