"""A project as ``startproject`` makes it, with the contenders that are Django's."""
