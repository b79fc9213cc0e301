"""An app that publishes the changes of a model of another one, which pages show as a table."""
