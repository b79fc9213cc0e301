"""The soak test: real processes, real services, faults without a pause, and then the verdict."""
