"""How far it goes: what is measured here, a model of it, and runs that the model is checked by."""
