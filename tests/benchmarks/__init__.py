"""What streams cost beside floors and peers: ``make bench`` and ``make bench-quick``."""
