"""``make mutants``: changes the core at random places, and tells which changes no test notices."""
